# SPDX-License-Identifier: BSD-2-Clause
# The same targets for bmake and GNU make, on FreeBSD and on Debian. Each target
# calls the script of its name in scripts/; scripts/lib holds their helpers.
#
#   make run              install packages, build the module, serve files through it
#   make test             run the tests
#   make kmod [REL=14|15] [ARCH=amd64|arm64] [SYSDIR=/usr/src/sys]
#                         build the module
#   make sendbench [REL=14|15] [ARCH=amd64|arm64]
#                         build the benchmark for FreeBSD
#   make freebsd [REL=14|15] [ARCH=amd64|arm64]
#                         build an archive for a FreeBSD machine without a compiler
#   make torture [MINUTES=5] [SEED=1]
#                         torture the module in the testbed
#   make setup            install the packages of scripts/lib/packages
#   make clean            remove target/

REL ?= 14
ARCH ?= amd64
SYSDIR ?=
MINUTES ?= 5
SEED ?= 1

all: kmod

setup:
	@scripts/setup

sendbench: setup
	@scripts/sendbench "$(REL)" "$(ARCH)"

kmod: setup
	@SYSDIR="$(SYSDIR)" scripts/kmod "$(REL)" "$(ARCH)"

run: kmod
	@scripts/run

test: kmod
	@scripts/test

freebsd: setup
	@scripts/freebsd "$(REL)" "$(ARCH)"

torture: kmod
	@scripts/torture "$(MINUTES)" "$(SEED)"

clean:
	rm -rf target

.PHONY: all setup kmod sendbench freebsd run test torture clean
