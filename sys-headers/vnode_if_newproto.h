/* SPDX-License-Identifier: BSD-2-Clause */
/* Replaces the header that vnode_if.awk generates: struct vop_vector. */
#pragma once
struct vop_vector {
	struct vop_vector	*vop_default;
	vop_bypass_t		*vop_bypass;
#define VOP(name)	vop_##name##_t	*vop_##name;
#include "vops.h"
#undef VOP
	bool			 registered;
};
