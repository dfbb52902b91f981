# SPDX-License-Identifier: BSD-2-Clause
# All kinds of mounts of FFS.

. "$(atf_get_srcdir)/lib.subr"

# Write files while others are sent.
written_beside() {
	writes=0
	while [ "$writes" -lt 20 ]; do
		cp files/two "$MNT/written.$writes"
		[ "$writes" -lt 4 ] || rm "$MNT/written.$((writes - 4))"
		same "$MNT/one" files/one -c
		same "$MNT/written.$writes" files/two
		writes=$((writes + 1))
	done
}

two_files() {
	mkdir files
	random_file files/one 3000001
	random_file files/two 400001
}

# Unmount, unload, and check that the filesystem is consistent.
whole() {
	more_than 0 calls_async
	umount "$MNT" || fail "umount"
	unload
	fsck_ffs -fn "/dev/$DISK" >said 2>&1 || fail "fsck_ffs: $(cat said)"
}

testcase journaled_soft_updates "a mount with journaled soft updates" fsck_ffs
journaled_soft_updates() {
	load
	two_files
	new_disk 128
	filled 2-32768-j files
	atf_check -o match:"soft updates: journaled|journaled soft-updates" mount
	written_beside
	whole
}

testcase quota "a mount with quotas" quotacheck quotaon repquota fsck_ffs
quota() {
	sysctl -n kern.features.ufs_quota >/dev/null 2>&1 || skip "this kernel has no option QUOTA"
	load
	two_files
	new_disk 128
	new_fs 2-32768
	echo "/dev/$DISK $MNT ufs rw,userquota 0 0" >fstab
	export PATH_FSTAB=$PWD/fstab
	mount_it
	cp files/one files/two "$MNT"
	cold
	atf_check -o ignore -e ignore quotacheck -u "$MNT"
	atf_check -o ignore quotaon -u "$MNT"
	written_beside
	# The quota counts root's files.
	atf_check -o match:"root +-- +[1-9]" repquota -u "$MNT"
	atf_check -o ignore quotaoff -u "$MNT"
	whole
}

testcase snapshot "snapshots are made while files are sent, and can be sent themselves" mksnap_ffs fsck_ffs
snapshot() {
	load
	two_files
	new_disk 48
	filled 2-32768-U files
	mkdir "$MNT/.snap" 2>/dev/null
	for name in first second third; do
		atf_check mksnap_ffs "$MNT/.snap/$name"
		written_beside
	done
	rm -f "$MNT/.snap/second"
	# Compare read(2), which does not call the pager, with a cold sendfile(2).
	dd if="$MNT/.snap/first" of=first bs=65536 2>/dev/null || fail "cannot read the snapshot"
	cold
	same "$MNT/.snap/first" first
	same "$MNT/one" files/one
	# The snapshot is a filesystem with the files as they were.
	md=$(mdconfig -a -t vnode -o readonly -f first) && echo "$md" >>mds
	mkdir then
	mount -o ro "/dev/$md" then || fail "cannot mount the snapshot"
	same "$PWD/then/one" files/one
	umount then
	whole
}

testcase gjournal "a mount with gjournal(8)" gjournal fsck_ffs
gjournal() {
	kmod g_journal geom_journal
	load
	two_files
	# A journal has at least 100 MiB.
	new_md 256
	command gjournal label -s 104857600 "$DISK" >said 2>&1 || fail "gjournal: $(cat said)"
	cat >teardown <<-EOF
	#!/bin/sh
	umount -f "$MNT"
	gjournal sync
	gjournal stop -f "$DISK.journal"
	EOF
	chmod +x teardown
	DISK=$DISK.journal SIZE=128
	patience=100
	until [ -c "/dev/$DISK" ]; do
		patience=$((patience - 1))
		[ "$patience" -gt 0 ] || fail "/dev/$DISK does not appear"
		sleep 0.1
	done
	filled 2-32768-J files -o async
	atf_check -o match:"gjournal" mount
	written_beside
	whole
}

testcase nullfs "the same files through nullfs" mount_nullfs
nullfs() {
	kmod nullfs nullfs
	load
	two_files
	new_disk 128
	filled 2-32768 files
	mkdir other
	mount -t nullfs "$MNT" "$PWD/other" || fail "mount_nullfs"
	same "$PWD/other/one" files/one -c
	same "$MNT/one" files/one -c
	same "$PWD/other/one" files/one
	more_than 0 calls_async
	umount other || fail "umount"
	umount "$MNT" || fail "umount"
	unload
}
