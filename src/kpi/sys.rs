// SPDX-License-Identifier: BSD-2-Clause
//! The kernel's structures and functions, as bindgen reads them from the
//! headers of the release. Asserts the parts of their layout that this crate
//! relies on.
#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    unnecessary_transmutes,
    dead_code
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

/// Bytes in a page; asyncpager is built for 4 KiB pages.
pub const PAGE: u32 = PAGE_SIZE as u32;

mod layout {
    use core::mem::offset_of;

    use static_assertions::const_assert_eq;

    use super::*;

    // One valid bit per DEV_BSIZE.
    const_assert_eq!(PAGE, 4096);
    const_assert_eq!(PAGE / DEV_BSIZE as u32, 8);
    // An argument block begins with its vnodeop_desc, as VOP_BYPASS requires.
    const_assert_eq!(offset_of!(vop_getpages_async_args, a_gen), 0);
    const_assert_eq!(offset_of!(vop_getpages_args, a_gen), 0);
    // b_pages is a flexible array at the very end.
    const_assert_eq!(offset_of!(buf, b_pages), size_of::<buf>());
    // The async slot follows the sync one.
    const_assert_eq!(
        offset_of!(vop_vector, vop_getpages_async),
        offset_of!(vop_vector, vop_getpages) + size_of::<usize>()
    );
    // A page is named by the address of its vm_page, and pointers are words.
    const_assert_eq!(size_of::<vm_page_t>(), 8);
}
