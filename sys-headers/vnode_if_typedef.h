/* SPDX-License-Identifier: BSD-2-Clause */
/* Replaces the header that vnode_if.awk generates: the types of the VOPs. */
#pragma once
#define VOP(name)						\
	struct vop_##name##_args;				\
	typedef int vop_##name##_t(struct vop_##name##_args *);
#include "vops.h"
#undef VOP
