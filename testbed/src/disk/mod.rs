// SPDX-License-Identifier: BSD-2-Clause
//! The disk below the kernel: a device that serves bufs from an image, and the
//! layout of UFS in that image.

pub mod behaviour;
pub mod device;
pub mod geom;
pub mod indirect;
pub mod request;
pub mod ufs;
pub mod written;
