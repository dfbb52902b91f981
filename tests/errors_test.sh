# SPDX-License-Identifier: BSD-2-Clause
# Disk errors.

. "$(atf_get_srcdir)/lib.subr"

testcase failing_disk "sendfile fails on some reads, but never sends wrong bytes" gnop
failing_disk() {
	if [ "$IN" = testbed ]; then
		all_shapes files
		serves 2-32768 files --fail 30
		more_than 0 errors
		check error error-only-ahead short-transfer
		return
	fi
	mkdir files
	random_file files/one 3000001
	load
	new_disk 64
	new_nop
	filled 2-32768 files -o ro
	gnop configure -r 20 -e 5 "$DISK"
	sends=0
	while [ "$sends" -lt 60 ]; do
		timeout 300 "$SERVE" -c -p 200000 "$MNT/one" >got 2>>failed || :
		differs files/one got && fail "wrong bytes"
		sends=$((sends + 1))
	done
	more_than 0 errors
	[ -s failed ] || fail "no send failed"
	gnop configure -r 0 "$DISK"
	# After the errors, all files are right.
	same_all files
	umount "$MNT" || fail "umount"
	unload
}

testcase_in kernel failing_always "a disk fails each read, and then recovers" gnop
failing_always() {
	mkdir files
	random_file files/one 3000001
	load
	new_disk 64
	new_nop
	filled 2-32768 files -o ro
	# The inode and the indirect blocks stay in memory.
	same "$MNT/one" files/one -c
	gnop configure -r 100 -e 5 "$DISK"
	for errno in 5 28; do
		gnop configure -e "$errno" "$DISK"
		atf_check -s exit:2 -e not-empty -o ignore timeout 300 "$SERVE" -c "$MNT/one"
	done
	more_than 0 errors
	gnop configure -r 0 "$DISK"
	same_all files
	umount "$MNT" || fail "umount"
	unload
}
