// SPDX-License-Identifier: BSD-2-Clause
//! Kernels with structures that differ from the headers which the module was built
//! with.

use std::sync::Mutex;

use clap::ValueEnum;

/// A difference between the kernel and the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Difference {
    /// struct buf is larger.
    Buf,
    /// struct vnode is larger.
    Vnode,
    /// struct vm_object is larger.
    VmObject,
    /// struct mount is larger.
    Mount,
    /// There is no zone of pbufs by the known name.
    NoBufZone,
    /// There is no zone of vnodes by the known name.
    NoVnodeZone,
    /// There is no zone of VM objects by the known name.
    NoVmObjectZone,
    /// There is no zone of mounts by the known name.
    NoMountZone,
    /// um_mountp of struct ufsmount is elsewhere.
    UmMountp,
    /// um_nindir of struct ufsmount is elsewhere.
    UmNindir,
    /// um_rdonly of struct ufsmount is elsewhere.
    UmRdonly,
    /// fs_magic of struct fs is elsewhere.
    FsMagic,
    /// i_vnode of struct inode is elsewhere.
    IVnode,
    /// i_number of struct inode is elsewhere.
    INumber,
    /// td_sa of struct thread is elsewhere.
    TdSa,
}

static NOW: Mutex<Option<Difference>> = Mutex::new(None);

/// From now on the kernel differs in this, or in nothing.
pub fn set(difference: Option<Difference>) {
    *NOW.lock().unwrap() = difference;
}

/// Whether the kernel differs in this.
pub fn is(difference: Difference) -> bool {
    *NOW.lock().unwrap() == Some(difference)
}
