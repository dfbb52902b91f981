# SPDX-License-Identifier: BSD-2-Clause
# sendfile(2) sends the right bytes for all shapes of files and filesystems.

. "$(atf_get_srcdir)/lib.subr"

all_shapes_on() { # FS
	all_shapes "$PWD/files"
	serves "$1" "$PWD/files"
	more_than 0 pages_requested
	more_than 0 bufs
}

for version in 1 2; do
	for block in 4096 32768 65536; do
		name=ufs${version}_$((block / 1024))k
		testcase $name "files of all shapes on UFS$version with blocks of $block bytes"
		eval "$name() { all_shapes_on $version-$block; }"
	done
done

testcase_in kernel softupdates "files of all shapes with soft updates"
softupdates() {
	all_shapes_on 2-32768-U
}

testcase holes "holes in any place are zeroes"
holes() {
	mkdir files
	hole files/first 300000 4 1
	hole files/last 300000 0 1
	hole files/only 1000001
	# 64 KiB of data at each of these multiples of 64 KiB, holes between them.
	hole files/comb 4000000 0 1 2 1 4 1 6 1 8 1 10 1 20 1 40 1
	for fs in 1-4096 2-32768 2-65536; do
		serves "$fs" files
		[ "$IN" = testbed ] || really_holes
	done
	[ "$IN" = kernel ] || check holes
}

# Check that the files on the disk have holes, and free the disk for the next one.
really_holes() {
	mount_it -o ro
	blocks=$(stat -f %b "$MNT/only")
	[ "$blocks" -lt 500 ] || fail "a hole of 1000001 bytes occupies $blocks blocks of 512 bytes"
	umount "$MNT" || fail "umount"
	each_line mds "mdconfig -d -u"
	rm -f mds
}

testcase end_of_file "reads that begin or end at the end of a file"
end_of_file() {
	if [ "$IN" = testbed ]; then
		check end-of-file last-partly-valid
		return
	fi
	load
	new_disk 64
	mkdir files
	for size in 1 511 4095 4097 33000 70001; do
		random_file "files/$size" "$size"
	done
	filled 2-32768 files -o ro
	for size in 1 511 4095 4097 33000 70001; do
		for offset in 0 1 $((size / 2)) $((size - 1)) "$size" $((size + 1)) $((size + 70000)); do
			tail -c +$((offset + 1)) "files/$size" >want
			same "$MNT/$size" want -o "$offset"
			same "$MNT/$size" want -o "$offset" -p 4096
		done
	done
	more_than 0 calls_async
}

testcase_in kernel growing "a file grows while a part of its last page is in memory"
growing() {
	load
	new_disk 64
	mkdir files
	random_file files/log 1000
	filled 2-32768 files
	for more in 1 511 2583 1 4095 28000 4096 100001; do
		same "$MNT/log" files/log
		random_file more "$more"
		cat more >>files/log
		cat more >>"$MNT/log"
		same "$MNT/log" files/log -p 1000
		# Cold again: the file grows while none of it is in memory.
		cold
		cat more >>files/log
		cat more >>"$MNT/log"
	done
	same "$MNT/log" files/log
	more_than 0 calls_async
}

testcase_in kernel odd_pieces "pieces that begin and end inside pages"
odd_pieces() {
	load
	new_disk 64
	mkdir files
	random_file files/file 700001
	filled 2-32768 files -o ro
	for piece in 333 4095 4097 33333 250000; do
		same "$MNT/file" files/file -p "$piece"
		tail -c +12346 files/file >want
		same "$MNT/file" want -o 12345 -p "$piece"
		cold -o ro
	done
	more_than 0 calls_async
}

testcase large_sector "the kernel serves devices with sectors larger than a page"
large_sector() {
	if [ "$IN" = testbed ]; then
		check large-sector
		return
	fi
	load
	new_disk 64
	new_nop -S 8192
	mkdir files
	for size in 1 8191 8192 8193 3000001; do
		random_file "files/$size" "$size"
	done
	filled 2-65536 files -o ro
	same_all files
	more_than 0 calls_original
}

testcase_in testbed without_unmapped_bufs "a mount without unmapped bufs"
without_unmapped_bufs() {
	all_shapes files
	serves 2-32768 files --mapped
	check mapped
}
