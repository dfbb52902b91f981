/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The vnode operations of FreeBSD 14, in the order of sys/kern/vnode_if.src.
 * The order is the layout of struct vop_vector; the module compares the slots
 * it touches with the running kernel's vnodeop_desc before it trusts them.
 */
VOP(islocked) VOP(lookup) VOP(cachedlookup) VOP(create) VOP(whiteout)
VOP(mknod) VOP(open) VOP(close) VOP(fplookup_vexec) VOP(fplookup_symlink)
VOP(access) VOP(accessx) VOP(stat) VOP(getattr) VOP(setattr) VOP(mmapped)
VOP(read) VOP(read_pgcache) VOP(write) VOP(ioctl) VOP(poll) VOP(kqfilter)
VOP(revoke) VOP(fsync) VOP(remove) VOP(link) VOP(rename) VOP(mkdir)
VOP(rmdir) VOP(symlink) VOP(readdir) VOP(readlink) VOP(inactive)
VOP(need_inactive) VOP(reclaim) VOP(lock1) VOP(unlock) VOP(bmap)
VOP(strategy) VOP(getwritemount) VOP(getlowvnode) VOP(print) VOP(pathconf)
VOP(advlock) VOP(advlockasync) VOP(advlockpurge) VOP(reallocblks)
VOP(getpages) VOP(getpages_async) VOP(putpages) VOP(getacl) VOP(setacl)
VOP(aclcheck) VOP(closeextattr) VOP(getextattr) VOP(listextattr)
VOP(openextattr) VOP(deleteextattr) VOP(setextattr) VOP(setlabel)
VOP(vptofh) VOP(vptocnp) VOP(allocate) VOP(advise) VOP(unp_bind)
VOP(unp_connect) VOP(unp_detach) VOP(is_text) VOP(set_text) VOP(unset_text)
VOP(add_writecount) VOP(fdatasync) VOP(copy_file_range) VOP(vput_pair)
VOP(deallocate) VOP(spare1) VOP(spare2) VOP(spare3) VOP(spare4) VOP(spare5)
