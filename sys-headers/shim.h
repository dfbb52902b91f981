/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the kernel offers only as macros and inline functions, as functions.
 * Each is named shim_ and the name of what it wraps; semantics are those of
 * the wrapped thing and of its manual page, and nothing is decided here.
 */
#pragma once

/* vm/vm_object.h */
void	shim_VM_OBJECT_WLOCK(vm_object_t);
void	shim_VM_OBJECT_WUNLOCK(vm_object_t);
void	shim_VM_OBJECT_RLOCK(vm_object_t);
void	shim_VM_OBJECT_RUNLOCK(vm_object_t);
vm_ooffset_t shim_vnp_size(vm_object_t);

/* sys/buf.h, sys/bufobj.h, vm/uma.h */
struct buf *shim_pbuf_alloc(uma_zone_t, int);
void	shim_pbuf_free(uma_zone_t, struct buf *);
void	shim_BUF_KERNPROC(struct buf *);
void	shim_bstrategy(struct buf *);
void	shim_runningbuf_claim(struct buf *, int);
bool	shim_buf_is_wide(const struct buf *);
size_t	shim_zone_item_size(const char *sysctl_name);

/* sys/proc.h, sys/ucred.h */
void	shim_hold_creds(struct buf *);

/* sys/vmmeter.h, sys/counter.h */
void	shim_VM_CNT_VNODE_IN(u_int pages);
void	shim_counter_u64_add(counter_u64_t, int64_t);

/* sys/vnode.h, sys/mount.h */
bool	shim_VN_IS_DOOMED(struct vnode *);
int	shim_VOP_BMAP(struct vnode *, daddr_t, struct bufobj **, daddr_t *,
	    int *, int *);
uint64_t shim_inode_number(struct vnode *);

/* sys/sched.h, sys/smp.h */
bool	shim_cpu_pass(u_int);
void	shim_cpu_unbind(void);

/* sys/module.h, sys/param.h */
extern const int shim_built_for;	/* __FreeBSD_version of the headers */
int	asyncpager_modevent(module_t, int, void *);
