/* SPDX-License-Identifier: BSD-2-Clause */
/* The kernel headers for bindgen and for the shim. */
#include <sys/param.h>
#include <sys/systm.h>
#include <sys/kernel.h>
#include <sys/module.h>
#include <sys/malloc.h>
#include <sys/callout.h>
#include <sys/taskqueue.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/errno.h>
#include <sys/lock.h>
#include <sys/mutex.h>
#include <sys/condvar.h>
#include <sys/rwlock.h>
#include <sys/sx.h>
#include <sys/priority.h>
#include <sys/proc.h>
#include <sys/sched.h>
#include <sys/smp.h>
#include <sys/pcpu.h>
#include <sys/ucred.h>
#include <sys/counter.h>
#include <sys/vmmeter.h>
#include <sys/stat.h>
#include <sys/sysctl.h>
#include <sys/bio.h>
#include <sys/bufobj.h>
#include <sys/buf.h>
#include <sys/mount.h>
#include <sys/vnode.h>
#include <vm/vm.h>
#include <vm/vm_param.h>
#include <vm/pmap.h>
#include <vm/vm_extern.h>
#include <vm/vm_object.h>
#include <vm/vm_page.h>
#include <vm/vm_pager.h>
#include <vm/vnode_pager.h>
#include <vm/uma.h>
#include <geom/geom.h>
#include <ufs/ufs/extattr.h>
#include <ufs/ufs/quota.h>
#include <ufs/ufs/inode.h>
#include <ufs/ufs/ufsmount.h>
#include <ufs/ffs/fs.h>

extern struct vop_vector ffs_vnodeops1;
extern struct vop_vector ffs_vnodeops2;
int	ffs_rdonly(struct inode *);

#include "shim.h"
