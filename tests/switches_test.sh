# SPDX-License-Identifier: BSD-2-Clause
# Sysctls and loader tunables, with good and bad values.

. "$(atf_get_srcdir)/lib.subr"

# The writable variables below vfs.asyncpager; sysctl -W lists nodes as well.
writable() {
	for oid in $(sysctl -NW vfs.asyncpager); do
		[ "$(sysctl -N "$oid")" != "$oid" ] || echo "$oid"
	done
}

# The bytes must be right with any value of a variable.
right_bytes() {
	cold -o ro
	same_all files
}

prepared() {
	load
	new_disk 64
	mkdir files
	random_file files/one 3000001
	filled 2-32768 files -o ro
	writable >names
	grep -qx vfs.asyncpager.enabled names || fail "enabled cannot be written: $(cat names)"
}

testcase_in kernel good_values "each variable takes its own value, a switch both values"
good_values() {
	prepared
	while read -r oid; do
		value=$(sysctl -n "$oid")
		atf_check -o ignore sysctl "$oid=$value"
		atf_check -o inline:"$value\n" sysctl -n "$oid"
		case $value in
		0 | 1)
			atf_check -o ignore sysctl "$oid=$((1 - value))"
			atf_check -o inline:"$((1 - value))\n" sysctl -n "$oid"
			right_bytes
			atf_check -o ignore sysctl "$oid=$value"
			;;
		esac
		right_bytes
	done <names
	more_than 0 calls_async
	unload
}

testcase_in kernel bad_values "a value that is not a number is rejected and changes nothing"
bad_values() {
	prepared
	while read -r oid; do
		value=$(sysctl -n "$oid")
		for bad in banana "" 1x 99999999999999999999999; do
			sysctl "$oid=$bad" >said 2>&1 && fail "$oid=$bad was not rejected: $(cat said)"
			atf_check -o inline:"$value\n" sysctl -n "$oid"
		done
		# A number out of range is rejected or clamped.
		for extreme in -1 0 2 255 2147483647 4294967295 9223372036854775807; do
			sysctl "$oid=$extreme" >/dev/null 2>&1 || :
			right_bytes
		done
		atf_check -o ignore sysctl "$oid=$value"
	done <names
	unload
}

testcase_in kernel counters_read_only "the counters cannot be written"
counters_read_only() {
	load
	sysctl -N vfs.asyncpager.stats >names
	[ -s names ] || fail "vfs.asyncpager.stats has no counters"
	while read -r oid; do
		sysctl "$oid=1" >said 2>&1 && fail "$oid was written"
		atf_check -o match:'^[0-9]+$' sysctl -n "$oid"
	done <names
	atf_check -s not-exit:0 -e not-empty sysctl vfs.asyncpager.nonsense
	unload
}

testcase tunables "loader tunables take effect, bad values are ignored"
tunables() {
	if [ "$IN" = testbed ]; then
		check tunables
		mkdir files
		random_file files/one 300000
		serves 2-32768 files --tunable vfs.asyncpager.enabled=banana
		more_than 0 calls_async
		return
	fi
	load
	sysctl -NT vfs.asyncpager >names
	grep -qx vfs.asyncpager.enabled names || fail "enabled is not a tunable: $(cat names)"
	while read -r oid; do
		sysctl "$oid" >>defaults
	done <names
	unload
	while IFS=': ' read -r oid value; do
		case $value in
		0 | 1) good=$((1 - value)) ;;
		*) good=$value ;;
		esac
		load "$oid=$good"
		atf_check -o inline:"$good\n" sysctl -n "$oid"
		unload
		for bad in banana ""; do
			load "$oid=$bad"
			atf_check -o inline:"$value\n" sysctl -n "$oid"
			unload
		done
		kenv -u "$oid" >/dev/null
	done <defaults
	# Without tunables, the module serves.
	mkdir files
	random_file files/one 300000
	serves 2-32768 files
}

testcase sync_too "the module serves page faults while sync is on"
sync_too() {
	if [ "$IN" = testbed ]; then
		check sync
		return
	fi
	prepared
	sysctl vfs.asyncpager.sync=1 >/dev/null
	# cmp(1) maps its files.
	cmp files/one "$MNT/one" || fail "wrong bytes through page faults"
	more_than 0 calls_sync
	sysctl vfs.asyncpager.sync=0 >/dev/null
	served=$(counter calls_sync)
	cold -o ro
	cmp files/one "$MNT/one" || fail "wrong bytes through page faults"
	[ "$(counter calls_sync)" -eq "$served" ] || fail "the module serves page faults while sync is off"
	unload
}

testcase_in kernel switched_under_load "switches change while files are sent"
switched_under_load() {
	prepared
	readers 3 "$MNT/one" "$PWD/files/one"
	flips=0
	while [ "$flips" -lt 100 ]; do
		sysctl vfs.asyncpager.enabled=$((flips % 2)) >/dev/null
		sysctl vfs.asyncpager.sync=$((flips / 2 % 2)) >/dev/null
		flips=$((flips + 1))
		sleep 0.05
	done
	readers_end
	no_failures
	more_than 0 calls_async
	more_than 0 calls_original
}
