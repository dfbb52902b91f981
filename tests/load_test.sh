# SPDX-License-Identifier: BSD-2-Clause
# Loading, unloading, and modules that the kernel must refuse.

. "$(atf_get_srcdir)/lib.subr"

testcase_in kernel load_unload "kldload adds the sysctls, kldunload removes them"
load_unload() {
	load
	atf_check -o inline:"1\n" sysctl -n vfs.asyncpager.enabled
	atf_check -o inline:"0\n" sysctl -n vfs.asyncpager.stats.calls_async
	unload
}

testcase_in kernel load_repeated "fifty loads and unloads leave no uma(9) zone behind"
load_repeated() {
	kldstat -q -m asyncpager && skip "asyncpager is loaded already: kldunload it first"
	zones_before=$(sysctl -N vm.uma | wc -l)
	loads=0
	while [ "$loads" -lt 50 ]; do
		load
		unload
		loads=$((loads + 1))
	done
	zones_after=$(sysctl -N vm.uma | wc -l)
	[ "$zones_before" -eq "$zones_after" ] ||
	    fail "vm.uma had $zones_before lines and has $zones_after"
}

testcase_in kernel loaded_twice "a second kldload fails, the loaded module goes on serving"
loaded_twice() {
	load
	atf_check -s not-exit:0 -e not-empty kldload "$(ko)"
	mkdir files
	random_file files/one 300000
	serves 2-32768 files
	unload
}

testcase unload_idle "kldunload beside busy threads of the idle class"
unload_idle() {
	if [ "$IN" = testbed ]; then
		check unload-idle-entering unload-idle-leaving unload-idle-runs unload-cpu-hog
		return
	fi
	load
	# One busy thread for each CPU, in user mode.
	hogs=
	cpus=$(sysctl -n hw.ncpu)
	while [ "$cpus" -gt 0 ]; do
		idprio 31 sh -c 'while :; do :; done' &
		hogs="$hogs $!"
		cpus=$((cpus - 1))
	done
	sleep 1
	timeout 120 kldunload asyncpager 2>said
	code=$?
	kill $hogs
	[ "$code" -eq 0 ] || fail "kldunload beside idprio: $(cat said; dmesg | tail -n 3)"
	kldstat -q -m asyncpager && fail "asyncpager is still there after kldunload"
	return 0
}

testcase registered "calls reach the module only while it is loaded and enabled"
registered() {
	mkdir files
	random_file files/one 300000
	if [ "$IN" = testbed ]; then
		serves 2-32768 files
		more_than 0 calls_async
		serves 2-32768 files --tunable vfs.asyncpager.enabled=0
		[ "$(counter calls_async)" -eq 0 ] || fail "the module served calls while it was disabled"
		more_than 0 calls_original
		check disabled replaced-since
		return
	fi
	serves 2-32768 files
	sysctl vfs.asyncpager.enabled=0 >/dev/null
	served=$(counter calls_async) original=$(counter calls_original)
	mount_it -o ro
	same_all files
	[ "$(counter calls_async)" -eq "$served" ] || fail "the module served calls while it was disabled"
	more_than "$original" calls_original
	sysctl vfs.asyncpager.enabled=1 >/dev/null
	cold -o ro
	same_all files
	more_than "$served" calls_async
	umount "$MNT"
	unload
	# After kldunload the kernel's own implementation serves.
	mount_it -o ro
	same_all files
}

testcase wrong_release "the kernel refuses a module for another release and prints what to build"
wrong_release() {
	if [ "$IN" = testbed ]; then
		refused "make kmod REL=15" demo --osreldate 1500068
		refused "depends on a kernel of" demo --osreldate 1301000
		return
	fi
	other=$(ls "$SRC"/asyncpager-*.ko) || skip "no module for another release beside the tests"
	running=$(uname -K)
	atf_check -s not-exit:0 -e not-empty kldload "$other"
	kldstat -q -m asyncpager && fail "$other is loaded"
	dmesg | tail -n 3 | grep -q "make kmod REL=$((running / 100000))" ||
	    fail "the kernel does not print what to build: $(dmesg | tail -n 3)"
	# The right module still loads.
	load
	unload
}

testcase_in testbed other_structures "the module refuses a kernel with other structures"
other_structures() {
	refused "struct vnode of this kernel differs" demo --differs vnode
	refused "struct mount cannot be checked" demo --differs no-mount-zone
	refused "ufsmount.um_mountp of a mounted FFS differs" demo --differs um-mountp
}

testcase_in kernel cut_short "the kernel refuses a truncated module"
cut_short() {
	for percent in 1 50 99; do
		head -c $(($(stat -f %z "$(ko)") * percent / 100)) "$(ko)" >cut.ko
		atf_check -s not-exit:0 -e not-empty kldload "$PWD/cut.ko"
		kldstat -q -m asyncpager && fail "the kernel loaded the first $percent % of the module"
	done
	load
	unload
}
