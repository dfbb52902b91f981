# SPDX-License-Identifier: BSD-2-Clause
# Loading, unloading, and what is refused.

. "$(atf_get_srcdir)/lib.subr"

testcase_in kernel load_unload "kldload shows the sysctls, kldunload takes them away"
load_unload() {
	load
	atf_check -o inline:"1\n" sysctl -n vfs.asyncpager.enabled
	atf_check -o inline:"0\n" sysctl -n vfs.asyncpager.stats.calls_async
	unload
}

testcase_in kernel load_repeated "fifty times, and nothing of it stays in the kernel"
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

testcase_in kernel loaded_twice "a second kldload is refused, the first stays at work"
loaded_twice() {
	load
	atf_check -s not-exit:0 -e not-empty kldload "$(ko)"
	mkdir files
	random_file files/one 300000
	serves 2-32768 files
	unload
}

testcase unload_idle "threads of the idle class and kldunload"
unload_idle() {
	if [ "$IN" = testbed ]; then
		check unload-idle-entering unload-idle-leaving unload-idle-runs unload-cpu-hog
		return
	fi
	load
	# One that runs on each CPU, in user mode.
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

testcase registered "calls reach the module while it is loaded and enabled, not otherwise"
registered() {
	mkdir files
	random_file files/one 300000
	if [ "$IN" = testbed ]; then
		serves 2-32768 files
		more_than 0 calls_async
		serves 2-32768 files --tunable vfs.asyncpager.enabled=0
		[ "$(counter calls_async)" -eq 0 ] || fail "called though it is not enabled"
		more_than 0 calls_original
		check disabled replaced-since
		return
	fi
	serves 2-32768 files
	sysctl vfs.asyncpager.enabled=0 >/dev/null
	served=$(counter calls_async) original=$(counter calls_original)
	mount_it -o ro
	same_all files
	[ "$(counter calls_async)" -eq "$served" ] || fail "called though it is not enabled"
	more_than "$original" calls_original
	sysctl vfs.asyncpager.enabled=1 >/dev/null
	cold -o ro
	same_all files
	more_than "$served" calls_async
	umount "$MNT"
	unload
	# The kernel's own is back.
	mount_it -o ro
	same_all files
}

testcase wrong_release "a module for another release is refused, with what to build"
wrong_release() {
	if [ "$IN" = testbed ]; then
		refused "make kmod REL=15" demo --osreldate 1500068
		refused "depends on a kernel of" demo --osreldate 1301000
		return
	fi
	other=$(ls "$SRC"/asyncpager-*.ko) || skip "no module for another release beside the tests"
	running=$(uname -U)
	atf_check -s not-exit:0 -e not-empty kldload "$other"
	kldstat -q -m asyncpager && fail "$other is loaded"
	dmesg | tail -n 3 | grep -q "make kmod REL=$((running / 100000))" ||
	    fail "the kernel does not say what to build: $(dmesg | tail -n 3)"
	# And the right one still loads.
	load
	unload
}

testcase_in testbed other_structures "a kernel with other structures is refused"
other_structures() {
	refused "struct vnode of this kernel differs" demo --differs vnode
	refused "struct mount cannot be checked" demo --differs no-mount-zone
	refused "ufsmount.um_mountp of a mounted FFS differs" demo --differs um-mountp
}

testcase_in kernel cut_short "a module that was cut short is refused"
cut_short() {
	for percent in 1 50 99; do
		head -c $(($(stat -f %z "$(ko)") * percent / 100)) "$(ko)" >cut.ko
		atf_check -s not-exit:0 -e not-empty kldload "$PWD/cut.ko"
		kldstat -q -m asyncpager && fail "$percent % of the module is loaded"
	done
	load
	unload
}
