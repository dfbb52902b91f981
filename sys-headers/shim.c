/* SPDX-License-Identifier: BSD-2-Clause */
#include "wrapper.h"

/*
 * KPI that only some releases have is weak here, so that a module for the
 * wrong release still links and can say in its own words why it refuses to
 * load (see src/kpi/module.rs).  Not on arm64, where a weak symbol needs a GOT
 * and the kernel's linker has none: there it is the linker that refuses.
 */
#ifdef __amd64__
#if __FreeBSD_version < 1500000
#pragma weak runningbufspace
#else
#pragma weak runningbufclaim
#endif
#endif

void
shim_VM_OBJECT_WLOCK(vm_object_t object)
{
	VM_OBJECT_WLOCK(object);
}

void
shim_VM_OBJECT_WUNLOCK(vm_object_t object)
{
	VM_OBJECT_WUNLOCK(object);
}

void
shim_VM_OBJECT_RLOCK(vm_object_t object)
{
	VM_OBJECT_RLOCK(object);
}

void
shim_VM_OBJECT_RUNLOCK(vm_object_t object)
{
	VM_OBJECT_RUNLOCK(object);
}

bool
shim_VM_OBJECT_TRYRLOCK(vm_object_t object)
{
	return (VM_OBJECT_TRYRLOCK(object) != 0);
}

bool
shim_vm_page_wired(vm_page_t m)
{
	return (vm_page_wired(m));
}

bool
shim_vm_page_xbusied(vm_page_t m)
{
	return (vm_page_xbusied(m));
}

u_int
shim_free_target(void)
{
	return (vm_cnt.v_free_target);
}

u_int
shim_free_min(void)
{
	return (vm_cnt.v_free_min);
}

vm_ooffset_t
shim_vnp_size(vm_object_t object)
{
	return (object->un_pager.vnp.vnp_size);
}

struct buf *
shim_pbuf_alloc(uma_zone_t zone, int flags)
{
	return (uma_zalloc(zone, flags));
}

void
shim_pbuf_free(uma_zone_t zone, struct buf *bp)
{
	uma_zfree(zone, bp);
}

void
shim_BUF_KERNPROC(struct buf *bp)
{
	BUF_KERNPROC(bp);
}

void
shim_bstrategy(struct buf *bp)
{
	bstrategy(bp);
}

void
shim_runningbuf_claim(struct buf *bp, int bytes)
{
#if __FreeBSD_version < 1500000
	bp->b_runningbufspace = bytes;
	atomic_add_long(&runningbufspace, bytes);
#else
	runningbufclaim(bp, bytes);
#endif
}

/* A buf whose b_pages has room for maxphys. */
bool
shim_buf_is_wide(const struct buf *bp)
{
	return ((bp->b_flags & B_MAXPHYS) != 0);
}

/* The size of a uma(9) zone's items, as vm.uma.*.size tells it; 0 if unknown. */
size_t
shim_zone_item_size(const char *sysctl_name)
{
	char name[64];
	uint32_t size = 0;
	size_t len = sizeof(size);

	/* kernel_sysctlbyname() takes a name that it may not keep const. */
	if (strlcpy(name, sysctl_name, sizeof(name)) >= sizeof(name) ||
	    kernel_sysctlbyname(curthread, name, &size, &len, NULL, 0, NULL,
	    0) != 0)
		return (0);
	return (size);
}

void
shim_hold_creds(struct buf *bp)
{
	bp->b_rcred = crhold(curthread->td_ucred);
	bp->b_wcred = crhold(curthread->td_ucred);
}

void
shim_VM_CNT_VNODE_IN(u_int pages)
{
	VM_CNT_INC(v_vnodein);
	VM_CNT_ADD(v_vnodepgsin, pages);
}

void
shim_counter_u64_add(counter_u64_t counter, int64_t inc)
{
	counter_u64_add(counter, inc);
}

bool
shim_VN_IS_DOOMED(struct vnode *vp)
{
	return (VN_IS_DOOMED(vp));
}

int
shim_VOP_BMAP(struct vnode *vp, daddr_t bn, struct bufobj **bop, daddr_t *bnp,
    int *runp, int *runb)
{
	struct vop_bmap_args a = {
		.a_gen.a_desc = &vop_bmap_desc,
		.a_vp = vp, .a_bn = bn, .a_bop = bop, .a_bnp = bnp,
		.a_runp = runp, .a_runb = runb,
	};

	return (VOP_BMAP_APV(vp->v_op, &a));
}

uint64_t
shim_inode_number(struct vnode *vp)
{
	return (VTOI(vp)->i_number);
}

/*
 * What comes after the dinode in struct inode is elsewhere in a kernel with
 * DIAGNOSTIC, so that size and flags are read from the dinode itself.
 */
uint64_t
shim_inode_size(struct vnode *vp)
{
	struct inode *ip = VTOI(vp);

	return (I_IS_UFS1(ip) ?
	    *(volatile uint64_t *)&ip->i_din1->di_size :
	    *(volatile uint64_t *)&ip->i_din2->di_size);
}

void
shim_VOP_UNLOCK(struct vnode *vp)
{
	struct vop_unlock_args a = {
		.a_gen.a_desc = &vop_unlock_desc, .a_vp = vp,
	};

	(void)VOP_UNLOCK_APV(vp->v_op, &a);
}

int
shim_vn_lock_shared_nowait(struct vnode *vp)
{
	return (vn_lock(vp, LK_SHARED | LK_NOWAIT));
}

/*
 * Whether a block of the file can be had without a disk: a buffer that is
 * valid, or pages from which one can be made.  A buffer that is just being
 * read does not count.  The vnode is locked.
 */
bool
shim_block_in_memory(struct vnode *vp, daddr_t lbn)
{
	struct buf *bp = gbincore_unlocked(&vp->v_bufobj, lbn);

	if (bp != NULL)
		return ((bp->b_flags & B_CACHE) != 0);
	return (inmem(vp, lbn));
}

/*
 * Have a block of the file, which is at blkno, read into the buffer cache.
 * Who asks for it before it is there waits for this read.  False if it is there
 * already.  The vnode is locked.
 */
bool
shim_read_block(struct vnode *vp, daddr_t lbn, daddr_t blkno)
{
	struct buf *bp;

	bp = getblk(vp, lbn, (int)vp->v_mount->mnt_stat.f_iosize, 0, 0, 0);
	if ((bp->b_flags & B_CACHE) != 0) {
		bqrelse(bp);
		return (false);
	}
	bp->b_iocmd = BIO_READ;
	bp->b_ioflags &= ~BIO_ERROR;
	bp->b_flags = (bp->b_flags & ~B_INVAL) | B_ASYNC;
	bp->b_blkno = blkno;
	bp->b_iooffset = dbtob(blkno);
	vfs_busy_pages(bp, 0);
	BUF_KERNPROC(bp);
	bstrategy(bp);
	return (true);
}

/*
 * How the file's indirect blocks read.  False where a pointer on the disk may
 * not be followed: a snapshot's means more than a place; an untrusted mount
 * checks each; and on an asynchronous or journaled mount a pointer can reach
 * the disk before the indirect block that it leads to.
 */
bool
shim_map_of(struct vnode *vp, struct shim_map *map)
{
	struct inode *ip = VTOI(vp);
	struct ufsmount *ump = VFSTOUFS(vp->v_mount);

	map->nindir = MNINDIR(ump);
	map->bptrtodb = ump->um_bptrtodb;
	map->seqinc = ump->um_seqinc;
	map->wide = !I_IS_UFS1(ip);
	return (ump->um_check_blkno == NULL &&
	    (vp->v_mount->mnt_flag & (MNT_ASYNC | MNT_GJOURNAL)) == 0 &&
	    (DIP(ip, i_flags) & SF_SNAPSHOT) == 0);
}

/* Blocks of DEV_BSIZE that the file's filesystem has. */
daddr_t
shim_fs_blocks(struct vnode *vp)
{
	const struct fs *fs = VFSTOUFS(vp->v_mount)->um_fs;

	return (fsbtodb(fs, fs->fs_size));
}

void
shim_mtx_init(struct mtx *m, const char *name)
{
	mtx_init(m, name, NULL, MTX_DEF);
}

void
shim_mtx_destroy(struct mtx *m)
{
	mtx_destroy(m);
}

void
shim_mtx_lock(struct mtx *m)
{
	mtx_lock(m);
}

void
shim_mtx_unlock(struct mtx *m)
{
	mtx_unlock(m);
}

void *
shim_malloc_waitok(size_t bytes)
{
	return (malloc(bytes, M_DEVBUF, M_WAITOK | M_ZERO));
}

void
shim_free(void *p)
{
	free(p, M_DEVBUF);
}

void
shim_callout_init(struct callout *c)
{
	callout_init(c, 1);
}

void
shim_callout_reset_us(struct callout *c, u_int us, void (*func)(void *),
    void *arg)
{
	callout_reset_sbt(c, us * SBT_1US, us * SBT_1US / 4, func, arg, 0);
}

void
shim_callout_drain(struct callout *c)
{
	callout_drain(c);
}

/* Make a queue with threads of its own.  `place' is where it lives. */
void
shim_taskqueue_start(struct taskqueue **place, const char *name, int threads)
{
	*place = taskqueue_create(name, M_WAITOK, taskqueue_thread_enqueue,
	    place);
	taskqueue_start_threads(place, threads, PVM, "%s", name);
}

void
shim_task_init(struct task *t, void (*func)(void *, int), void *context)
{
	TASK_INIT(t, 0, func, context);
}

uint64_t
shim_uptime_us(void)
{
	return (sbttous(sbinuptime()));
}

struct thread *
shim_curthread(void)
{
	return (curthread);
}

/* Whether the calling thread's last system call is sendfile(2). */
bool
shim_in_sendfile(void)
{
	return (curthread->td_sa.code == SYS_sendfile);
}

uid_t
shim_real_uid(void)
{
	return (curthread->td_ucred->cr_ruid);
}

/*
 * Run on the given CPU, and again after everything that was runnable there
 * has had its turn.  False when there is no such CPU.
 */
bool
shim_cpu_pass(u_int cpu)
{
	if (cpu > mp_maxid || CPU_ABSENT(cpu))
		return (false);
	thread_lock(curthread);
	sched_bind(curthread, cpu);
	thread_unlock(curthread);
	kern_yield(PRI_MAX_TIMESHARE);
	return (true);
}

void
shim_cpu_unbind(void)
{
	thread_lock(curthread);
	sched_unbind(curthread);
	thread_unlock(curthread);
}

/*
 * The module's registration.  MODULE_DEPEND admits any kernel from 14 to 15:
 * asyncpager_modevent() compares releases itself and says what to build.
 */
const int shim_built_for = __FreeBSD_version;

static moduledata_t asyncpager_mod = {
	"asyncpager", asyncpager_modevent, NULL
};
MODULE_VERSION(asyncpager, 1);
MODULE_DEPEND(asyncpager, ufs, 1, 1, 1);
MODULE_DEPEND(asyncpager, kernel, 1400000, __FreeBSD_version, 1599999);
MODULE_METADATA(_md_asyncpager, MDT_MODULE, &asyncpager_mod, "asyncpager");
SYSINIT(asyncpagermodule, SI_SUB_VFS, SI_ORDER_ANY, module_register_init,
    &asyncpager_mod);
