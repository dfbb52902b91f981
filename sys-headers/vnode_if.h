/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Replaces the header that vnode_if.awk generates: argument structures and
 * entry points of the VOPs that the module implements or calls. a_gen comes
 * first, then the arguments in the order of vnode_if.src.
 */
#pragma once
#include "vnode_if_typedef.h"
#include "vnode_if_newproto.h"

struct vop_bmap_args {
	struct vop_generic_args	a_gen;
	struct vnode		*a_vp;
	daddr_t			 a_bn;
	struct bufobj		**a_bop;
	daddr_t			*a_bnp;
	int			*a_runp;
	int			*a_runb;
};

struct vop_unlock_args {
	struct vop_generic_args	a_gen;
	struct vnode		*a_vp;
};

struct vop_getpages_args {
	struct vop_generic_args	a_gen;
	struct vnode		*a_vp;
	vm_page_t		*a_m;
	int			 a_count;
	int			*a_rbehind;
	int			*a_rahead;
};

struct vop_getpages_async_args {
	struct vop_generic_args	a_gen;
	struct vnode		*a_vp;
	vm_page_t		*a_m;
	int			 a_count;
	int			*a_rbehind;
	int			*a_rahead;
	vop_getpages_iodone_t	*a_iodone;
	void			*a_arg;
};

extern struct vnodeop_desc vop_bmap_desc;
extern struct vnodeop_desc vop_unlock_desc;
extern struct vnodeop_desc vop_getpages_desc;
extern struct vnodeop_desc vop_getpages_async_desc;

#if __FreeBSD_version < 1500000
int VOP_BMAP_APV(struct vop_vector *, struct vop_bmap_args *);
int VOP_UNLOCK_APV(struct vop_vector *, struct vop_unlock_args *);
#else
int VOP_BMAP_APV(const struct vop_vector *, struct vop_bmap_args *);
int VOP_UNLOCK_APV(const struct vop_vector *, struct vop_unlock_args *);
#endif
