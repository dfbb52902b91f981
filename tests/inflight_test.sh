# SPDX-License-Identifier: BSD-2-Clause
# Events while reads are in flight.

. "$(atf_get_srcdir)/lib.subr"

# Read a file on a disk with latency in the background, so that reads are in flight.
sending() { # options of mount
	mkdir -p files
	random_file files/one 5000001
	load
	new_disk 128
	new_nop -d 20 -q 100
	filled 2-32768 files "$@"
	readers 3 "$MNT/one" "$PWD/files/one"
	until [ -s passes ]; do
		sleep 0.2
	done
	more_than 0 calls_async
}

testcase unload_under_load "kldunload and kldload while files are sent" gnop
unload_under_load() {
	if [ "$IN" = testbed ]; then
		check unload-under-load parallel
		return
	fi
	sending -o ro
	rounds=0
	while [ "$rounds" -lt 15 ]; do
		tries=1
		until timeout 120 kldunload asyncpager 2>said; do
			[ "$tries" -lt 3 ] || fail "not unloaded after $tries tries: $(cat said)"
			tries=$((tries + 1))
		done
		sleep 0.2
		load
		sleep 0.5
		rounds=$((rounds + 1))
	done
	patience=600
	while [ "$(counter calls_async)" -eq 0 ]; do
		patience=$((patience - 1))
		[ "$patience" -gt 0 ] || fail "no call reaches the module after the last load"
		sleep 0.1
	done
	readers_end
	no_failures
}

testcase device_gone "the device goes away" gnop
device_gone() {
	if [ "$IN" = testbed ]; then
		check device-gone
		return
	fi
	sending -o ro
	gnop destroy -f "$DISK" || fail "gnop destroy -f"
	readers_fail
	umount -f "$MNT" 2>/dev/null
	mount -p | grep -q "$MNT" && fail "still mounted"
	unload
}

# Wait until a send fails, then end the readers.
readers_fail() {
	patience=600
	until [ -s failed ]; do
		patience=$((patience - 1))
		[ "$patience" -gt 0 ] || fail "no send fails"
		sleep 0.2
	done
	readers_end
}

testcase_in kernel md_gone "the md(4) below the filesystem goes away"
md_gone() {
	mkdir files
	random_file files/one 5000001
	load
	new_md 128
	filled 2-32768 files -o ro
	readers 3 "$MNT/one" "$PWD/files/one"
	until [ -s passes ]; do
		sleep 0.2
	done
	mdconfig -d -o force -u "$DISK" || fail "mdconfig -d"
	readers_fail
	umount -f "$MNT" 2>/dev/null
	mount -p | grep -q "$MNT" && fail "still mounted"
	unload
}

testcase forced_unmount "umount -f while files are sent" gnop
forced_unmount() {
	if [ "$IN" = testbed ]; then
		check doomed
		return
	fi
	sending -o ro
	rounds=0
	while [ "$rounds" -lt 10 ]; do
		timeout 120 umount -f "$MNT" || fail "umount -f: exit code $?"
		sleep 0.2
		mount_it -o ro
		sleep 0.5
		rounds=$((rounds + 1))
	done
	readers_end
	[ -s failed ] || fail "no send failed"
	# After the last mount the file is right again.
	same "$MNT/one" files/one
	umount "$MNT" || fail "umount"
	unload
}

testcase truncated "files are truncated and written again while they are sent" gnop
truncated() {
	if [ "$IN" = testbed ]; then
		testbed torture --deterministic --calls 20000 --save violation.json
		return
	fi
	sending
	readers_end
	no_failures
	rm -f stop passes
	read_cut "$PWD/files/one" &
	echo $! >>pids
	rounds=0
	while [ "$rounds" -lt 60 ]; do
		for size in 5000001 4999000 100001 4095 3000000 1 0; do
			truncate -s "$size" "$MNT/one" || fail "truncate"
		done
		cp "$PWD/files/one" "$MNT/one" || fail "cp"
		rounds=$((rounds + 1))
	done
	readers_end
	no_failures
	same "$MNT/one" files/one
	umount "$MNT" || fail "umount"
	unload
}

# Read a file that is truncated and written at the same time: each byte is either
# that of the original or 0.
read_cut() { # original
	while [ ! -e stop ]; do
		timeout 300 "$SERVE" -c "$MNT/one" >got.cut 2>said.cut ||
		    echo "exit code $?: $(cat said.cut)" >>failed
		cmp -l "$1" got.cut 2>/dev/null | awk '$3 != 0' | head -n 3 >>wrong
		echo . >>passes
	done
}
