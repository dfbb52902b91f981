/* SPDX-License-Identifier: BSD-2-Clause */
#include "wrapper.h"

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

void *
shim_uma_zalloc(uma_zone_t zone, int flags)
{
	return (uma_zalloc(zone, flags));
}

void
shim_uma_zfree(uma_zone_t zone, void *item)
{
	uma_zfree(zone, item);
}

uma_zone_t
shim_uma_zcreate(const char *name, size_t size)
{
	return (uma_zcreate(name, size, NULL, NULL, NULL, NULL, UMA_ALIGN_PTR,
	    0));
}

/* The address space of a buf: maxphys, and a page for a start inside a page. */
#define	BUF_KVA_SIZE	(maxphys + PAGE_SIZE)

/*
 * Initializes a buf in zeroed memory. Its lock belongs to the kernel while the
 * buf exists, so that any thread may complete it. False when there is no
 * address space.
 */
bool
shim_buf_init(struct buf *bp)
{
	bp->b_kvabase = (void *)kva_alloc(BUF_KVA_SIZE);
	if (bp->b_kvabase == NULL)
		return (false);
	bp->b_kvasize = BUF_KVA_SIZE;
	LIST_INIT(&bp->b_dep);
	BUF_LOCKINIT(bp, "asyncpager buf");
	BUF_LOCK(bp, LK_EXCLUSIVE | LK_NOWAIT, NULL);
	BUF_KERNPROC(bp);
	return (true);
}

void
shim_buf_fini(struct buf *bp)
{
	BUF_UNLOCK(bp);
	BUF_LOCKFREE(bp);
	kva_free((vm_offset_t)bp->b_kvabase, BUF_KVA_SIZE);
}

/* Resets a buf as pbuf_ctor() does, except for the lock. */
void
shim_buf_reset(struct buf *bp)
{
	bp->b_vp = NULL;
	bp->b_bufobj = NULL;
	bp->b_rcred = NOCRED;
	bp->b_wcred = NOCRED;
	bp->b_qindex = 0;
	bp->b_data = bp->b_kvabase;
	bp->b_xflags = 0;
	bp->b_flags = B_MAXPHYS | B_ASYNC;
	bp->b_iodone = NULL;
	bp->b_runningbufspace = 0;
}

/* Prepares the buf for an I/O, which ends with a call of iodone. */
void
shim_buf_begin(struct buf *bp, void (*iodone)(struct buf *))
{
	bp->b_flags &= ~B_DONE;
	bp->b_ioflags = 0;
	bp->b_error = 0;
	bp->b_resid = 0;
	bp->b_iodone = iodone;
}

/* The errno of the buf's I/O; 0 if it has not failed. */
int
shim_buf_error(const struct buf *bp)
{
	if ((bp->b_ioflags & BIO_ERROR) == 0)
		return (0);
	return (bp->b_error != 0 ? bp->b_error : EIO);
}

void
shim_bstrategy(struct buf *bp)
{
	bstrategy(bp);
}

/* The item size of a uma(9) zone, by the sysctl vm.uma.*.size; 0 if unknown. */
size_t
shim_zone_item_size(const char *sysctl_name)
{
	char name[64];
	uint32_t size = 0;
	size_t len = sizeof(size);

	/* kernel_sysctlbyname() takes a name that is not const. */
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
shim_drop_creds(struct buf *bp)
{
	if (bp->b_rcred != NOCRED)
		crfree(bp->b_rcred);
	if (bp->b_wcred != NOCRED)
		crfree(bp->b_wcred);
	bp->b_rcred = NOCRED;
	bp->b_wcred = NOCRED;
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

/*
 * The first field of a mount's struct ufsmount or superblock that does not
 * match the headers; NULL if all do. um_rdonly lies two pointers before
 * um_check_blkno, the last field that the module reads.
 */
static const char *
ufsmount_mismatch(struct mount *mp)
{
	const struct ufsmount *ump = VFSTOUFS(mp);
	const struct fs *fs;

	if (ump == NULL || ump->um_mountp != mp)
		return ("ufsmount.um_mountp");
	fs = ump->um_fs;
	if (fs == NULL || (fs->fs_magic != FS_UFS1_MAGIC &&
	    fs->fs_magic != FS_UFS2_MAGIC))
		return ("fs.fs_magic");
	if (MNINDIR(ump) * (fs->fs_magic == FS_UFS1_MAGIC ?
	    sizeof(ufs1_daddr_t) : sizeof(ufs2_daddr_t)) != (u_long)fs->fs_bsize)
		return ("ufsmount.um_nindir");
	if (ump->um_rdonly != ffs_rdonly)
		return ("ufsmount.um_rdonly");
	return (NULL);
}

/*
 * The first field of a mounted FFS that does not match the headers; NULL if all
 * do, or if no FFS is mounted. Also checks the root directory's inode when that
 * is on FFS. Sleeps: yes.
 */
const char *
shim_ffs_mismatch(void)
{
	struct mount *mp;
	const char *mismatch;
	struct inode *ip;

	mtx_lock(&mountlist_mtx);
	TAILQ_FOREACH(mp, &mountlist, mnt_list) {
		/*
		 * A mount that is being unmounted may have no ufsmount any
		 * more.
		 */
		if (strcmp(mp->mnt_vfc->vfc_name, "ufs") == 0 &&
		    vfs_busy(mp, MBF_NOWAIT | MBF_MNTLSTLOCK) == 0)
			break;
	}
	if (mp == NULL) {
		mtx_unlock(&mountlist_mtx);
		return (NULL);
	}
	/* vfs_busy() has unlocked the list. */
	mismatch = ufsmount_mismatch(mp);
	vfs_unbusy(mp);
	if (mismatch != NULL || rootvnode == NULL ||
	    (rootvnode->v_op != &ffs_vnodeops1 &&
	    rootvnode->v_op != &ffs_vnodeops2))
		return (mismatch);
	ip = VTOI(rootvnode);
	if (ip == NULL || ip->i_vnode != rootvnode)
		return ("inode.i_vnode");
	return (ip->i_number == UFS_ROOTINO ? NULL : "inode.i_number");
}

/*
 * The vnode's inode; NULL when it does not match the headers. Checked at each
 * use, since no FFS may have been mounted at load time.
 */
static struct inode *
checked_inode(struct vnode *vp)
{
	struct inode *ip = VTOI(vp);

	return (ip != NULL && ip->i_vnode == vp ? ip : NULL);
}

uint64_t
shim_inode_number(struct vnode *vp)
{
	struct inode *ip = checked_inode(vp);

	return (ip != NULL ? ip->i_number : 0);
}

/*
 * Reads the size from the dinode. A kernel with DIAGNOSTIC has the fields
 * behind the dinode pointer of struct inode at other offsets.
 */
uint64_t
shim_inode_size(struct vnode *vp)
{
	struct inode *ip = checked_inode(vp);

	if (ip == NULL)
		return (0);
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
 * Whether a block of the file is available without a read from the disk: in a
 * valid buffer, or in pages that can make one. A buffer that is being read does
 * not count. Locks: vnode. Sleeps: no.
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
 * Starts to read a block of the file, which is at blkno, into the buffer cache.
 * A thread that needs the block waits for this read. False if the block is
 * there already. Locks: vnode. Sleeps: for the buffer.
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

/* The depth to which providers below a device are checked. */
#define	GEOM_DEPTH	16

static bool
provider_verifies(struct g_provider *pp, int depth)
{
	struct g_consumer *cp;

	if (depth == 0 || pp == NULL || pp->geom == NULL ||
	    strcmp(pp->geom->class->name, "ELI") == 0)
		return (true);
	LIST_FOREACH(cp, &pp->geom->consumer, consumer) {
		if (provider_verifies(cp->provider, depth - 1))
			return (true);
	}
	return (false);
}

/*
 * Whether a read of a sector that was never written may fail: geli(8) verifies
 * data if it was initialized with authentication. True for any geli(8)
 * provider, and when the topology lock is not free. Sleeps: no.
 */
bool
shim_device_verifies(struct bufobj *bo)
{
	struct g_consumer *cp = bo->bo_private;
	bool verifies;

	if (cp == NULL || !g_topology_try_lock())
		return (true);
	verifies = provider_verifies(cp->provider, GEOM_DEPTH);
	g_topology_unlock();
	return (verifies);
}

/*
 * The format of the file's indirect blocks. False where the module must not
 * follow a pointer on the disk: a snapshot has pointers that are not places; an
 * untrusted mount checks each pointer; on an asynchronous or journaled mount a
 * pointer can reach the disk before the indirect block that it leads to. False
 * also when a structure does not match the headers.
 */
bool
shim_map_of(struct vnode *vp, struct shim_map *map)
{
	struct inode *ip = checked_inode(vp);
	struct ufsmount *ump;

	if (ip == NULL || ufsmount_mismatch(vp->v_mount) != NULL)
		return (false);
	ump = VFSTOUFS(vp->v_mount);
	map->nindir = MNINDIR(ump);
	map->bptrtodb = ump->um_bptrtodb;
	map->seqinc = ump->um_seqinc;
	map->wide = !I_IS_UFS1(ip);
	return (ump->um_check_blkno == NULL &&
	    (vp->v_mount->mnt_flag & (MNT_ASYNC | MNT_GJOURNAL)) == 0 &&
	    (DIP(ip, i_flags) & SF_SNAPSHOT) == 0);
}

/*
 * The size of the file's filesystem, in units of DEV_BSIZE; 0 when a structure
 * does not match the headers.
 */
daddr_t
shim_fs_blocks(struct vnode *vp)
{
	const struct fs *fs;

	if (ufsmount_mismatch(vp->v_mount) != NULL)
		return (0);
	fs = VFSTOUFS(vp->v_mount)->um_fs;
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

void
shim_cv_init(struct cv *cv, const char *name)
{
	cv_init(cv, name);
}

void
shim_cv_destroy(struct cv *cv)
{
	cv_destroy(cv);
}

void
shim_cv_wait(struct cv *cv, struct mtx *m)
{
	cv_wait(cv, m);
}

void
shim_cv_signal(struct cv *cv)
{
	cv_signal(cv);
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

/*
 * Creates a queue with threads of its own. `place': the variable that keeps it.
 */
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

/* The number of the calling thread's last system call. */
u_int
shim_syscall_number(void)
{
	return (curthread->td_sa.code);
}

/*
 * Whether the calling thread belongs to the kernel's own process, as at boot.
 */
bool
shim_in_proc0(void)
{
	return (curthread->td_proc == &proc0);
}

/*
 * Whether a thread is running or runnable, not asleep or blocked. Locks:
 * thread_lock.
 */
static bool
is_awake(struct thread *td)
{
	return (TD_IS_RUNNING(td) || TD_ON_RUNQ(td) || TD_CAN_RUN(td));
}

/*
 * Lists the threads of the idle class, idprio(1)'s, that are running or
 * runnable, except the calling thread and the CPUs' idle threads. Returns their
 * number; `to' gets up to `room' of them. Sleeps: yes.
 */
u_int
shim_idle_class(struct shim_thread *to, u_int room)
{
	struct proc *p;
	struct thread *td;
	u_int n = 0;

	sx_slock(&allproc_lock);
	FOREACH_PROC_IN_SYSTEM(p) {
		PROC_LOCK(p);
		/* fork1() lists a process before its thread has a td_lock. */
		if (p->p_state != PRS_NORMAL) {
			PROC_UNLOCK(p);
			continue;
		}
		FOREACH_THREAD_IN_PROC(p, td) {
			if (td == curthread || TD_IS_IDLETHREAD(td))
				continue;
			thread_lock(td);
			if (PRI_BASE(td->td_pri_class) == PRI_IDLE &&
			    is_awake(td)) {
				if (n < room) {
					to[n].tid = td->td_tid;
					to[n].pid = p->p_pid;
					to[n].switches = td->td_generation;
				}
				n++;
			}
			thread_unlock(td);
		}
		PROC_UNLOCK(p);
	}
	sx_sunlock(&allproc_lock);
	return (n);
}

/*
 * Counts how often a thread has been switched out since `then'. False when the
 * thread sleeps, is blocked, or has exited.
 */
bool
shim_thread_switches(const struct shim_thread *then, u_int *switches)
{
	struct thread *td;
	bool awake;

	/* tdfind() returns with the process locked. */
	td = tdfind(then->tid, then->pid);
	if (td == NULL)
		return (false);
	thread_lock(td);
	awake = is_awake(td);
	*switches = td->td_generation - then->switches;
	thread_unlock(td);
	PROC_UNLOCK(td->td_proc);
	return (awake);
}

uid_t
shim_real_uid(void)
{
	return (curthread->td_ucred->cr_ruid);
}

/*
 * Moves the calling thread to a CPU, and runs again after all threads that were
 * runnable there. False when there is no such CPU. Sleeps: yes.
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
 * The module's registration. MODULE_DEPEND admits any kernel from 14 to 15:
 * asyncpager_modevent() compares the releases itself and prints what to build.
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
