/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Functions for kernel macros and inline functions. A function with the name of
 * a kernel interface after shim_ has the semantics of that interface and of its
 * manual page. The other functions read or set fields of kernel structures, or
 * combine a few calls; shim.c describes them.
 */
#pragma once

/* vm/vm_object.h */
void	shim_VM_OBJECT_WLOCK(vm_object_t);
void	shim_VM_OBJECT_WUNLOCK(vm_object_t);
void	shim_VM_OBJECT_RLOCK(vm_object_t);
void	shim_VM_OBJECT_RUNLOCK(vm_object_t);
bool	shim_VM_OBJECT_TRYRLOCK(vm_object_t);
vm_ooffset_t shim_vnp_size(vm_object_t);

/* vm/vm_page.h, sys/vmmeter.h */
bool	shim_vm_page_wired(vm_page_t);
bool	shim_vm_page_xbusied(vm_page_t);
u_int	shim_free_target(void);
u_int	shim_free_min(void);

/* sys/buf.h, sys/bufobj.h, vm/uma.h */
void	*shim_uma_zalloc(uma_zone_t, int);
void	shim_uma_zfree(uma_zone_t, void *);
uma_zone_t shim_uma_zcreate(const char *, size_t);
bool	shim_buf_init(struct buf *);
void	shim_buf_fini(struct buf *);
void	shim_buf_reset(struct buf *);
void	shim_buf_begin(struct buf *, void (*)(struct buf *));
int	shim_buf_error(const struct buf *);
void	shim_bstrategy(struct buf *);
size_t	shim_zone_item_size(const char *sysctl_name);

/* sys/proc.h, sys/ucred.h */
void	shim_hold_creds(struct buf *);
void	shim_drop_creds(struct buf *);

/* sys/vmmeter.h, sys/counter.h */
void	shim_VM_CNT_VNODE_IN(u_int pages);
void	shim_counter_u64_add(counter_u64_t, int64_t);

/* sys/vnode.h, sys/mount.h */
bool	shim_VN_IS_DOOMED(struct vnode *);
int	shim_VOP_BMAP(struct vnode *, daddr_t, struct bufobj **, daddr_t *,
	    int *, int *);
uint64_t shim_inode_number(struct vnode *);
uint64_t shim_inode_size(struct vnode *);
void	shim_VOP_UNLOCK(struct vnode *);
int	shim_vn_lock_shared_nowait(struct vnode *);
bool	shim_block_in_memory(struct vnode *, daddr_t);
bool	shim_read_block(struct vnode *, daddr_t, daddr_t);

/* ufs/ufs/inode.h, ufs/ufs/ufsmount.h */
struct shim_map {
	u_long	nindir;		/* pointers in an indirect block */
	u_int	bptrtodb;	/* shift from a pointer to DEV_BSIZE blocks */
	u_int	seqinc;		/* from a block's pointer to the next one's */
	bool	wide;		/* pointers are of 64 bits (UFS2) */
};
bool	shim_map_of(struct vnode *, struct shim_map *);
const char *shim_ffs_mismatch(void);

/* geom/geom.h */
bool	shim_device_verifies(struct bufobj *);

/* ufs/ffs/fs.h */
daddr_t	shim_fs_blocks(struct vnode *);

/* sys/mutex.h, sys/condvar.h, sys/malloc.h, sys/callout.h, sys/taskqueue.h */
void	shim_mtx_init(struct mtx *, const char *);
void	shim_mtx_destroy(struct mtx *);
void	shim_mtx_lock(struct mtx *);
void	shim_mtx_unlock(struct mtx *);
void	shim_cv_init(struct cv *, const char *);
void	shim_cv_destroy(struct cv *);
void	shim_cv_wait(struct cv *, struct mtx *);
void	shim_cv_signal(struct cv *);
void	*shim_malloc_waitok(size_t);
void	shim_free(void *);
void	shim_callout_init(struct callout *);
void	shim_callout_reset_us(struct callout *, u_int, void (*)(void *), void *);
void	shim_callout_drain(struct callout *);
void	shim_taskqueue_start(struct taskqueue **, const char *, int threads);
void	shim_task_init(struct task *, void (*)(void *, int), void *);

/* sys/time.h, sys/pcpu.h */
uint64_t shim_uptime_us(void);
struct thread *shim_curthread(void);
uid_t	shim_real_uid(void);

/* sys/proc.h */
struct shim_thread {
	lwpid_t	tid;
	pid_t	pid;
	u_int	switches;	/* td_generation: how often switched out */
};
u_int	shim_syscall_number(void);
bool	shim_in_proc0(void);
u_int	shim_idle_class(struct shim_thread *, u_int room);
bool	shim_thread_switches(const struct shim_thread *, u_int *switches);

/* sys/sched.h, sys/smp.h */
bool	shim_cpu_pass(u_int);
void	shim_cpu_unbind(void);

/* sys/module.h, sys/param.h */
extern const int shim_built_for;	/* __FreeBSD_version of the headers */
int	asyncpager_modevent(module_t, int, void *);
