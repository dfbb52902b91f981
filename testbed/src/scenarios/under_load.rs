// SPDX-License-Identifier: BSD-2-Clause
//! Many threads at once, and what happens beneath them.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use crate::{
    consumers::sendfile::{self, Sending},
    disk::behaviour::Behaviour,
    ffs::file::File,
    kernel::{proc, vm_object},
    kld::{module::Module, options::Options},
    scenarios::{
        fixture::{Fixture, Run},
        steps::{P, straight},
    },
};

/// All of them, by name.
pub const ALL: &[(&str, Run)] = &[
    ("unload-under-load", unload_under_load),
    ("parallel", parallel),
    ("forced-unmount", forced_unmount),
];

/// Threads that send random ranges of their files for as long as `during`
/// runs, which sees how many requests were served and how many have failed.
/// Bytes that were sent are always right.
fn senders<T>(
    fixture: &Fixture,
    files: &[Arc<File>],
    during: impl FnOnce(&AtomicU64, &AtomicU64) -> T,
) -> Result<(u64, u64, T)> {
    let stop = AtomicBool::new(false);
    let (sent, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|n| {
                let (stop, sent, failed) = (&stop, &sent, &failed);
                scope.spawn(move || -> Result<()> {
                    proc::attach();
                    let mut rng = fastrand::Rng::with_seed(n);
                    while !stop.load(Ordering::Relaxed) {
                        let file = &files[rng.usize(..files.len())];
                        let offset = rng.u64(..file.inode.size);
                        let mut bytes = Vec::new();
                        let result = sendfile::sendfile(
                            file,
                            offset,
                            rng.u64(1..200_000),
                            rng.i32(0..40),
                            true,
                            |b| bytes.extend_from_slice(b),
                        );
                        match result {
                            Ok(()) => sent.fetch_add(1, Ordering::Relaxed),
                            Err(_) => failed.fetch_add(1, Ordering::Relaxed),
                        };
                        for (i, byte) in bytes.iter().enumerate() {
                            let at = offset + i as u64;
                            ensure!(*byte == fixture.byte(file, at), "byte {at} is wrong");
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let result = during(&sent, &failed);
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a sender panicked"))??;
        }
        Ok((sent.load(Ordering::Relaxed), failed.load(Ordering::Relaxed), result))
    })
}

fn busy_files(fixture: &Fixture) -> Vec<Arc<File>> {
    let scattered: Vec<_> = (0..100).map(|i| (i % 9 != 4).then_some(i * 7 % 400)).collect();
    // vnode_pager_haspage() takes a page whose first block is a hole for one
    // that is nothing else, so sendfile sends such a page as zeros, with any pager.
    let small: Vec<_> =
        (0..100).map(|i| (i % 4 == 0 || i % 9 != 4).then_some(i * 7 % 400)).collect();
    vec![
        fixture.synthetic(32768, &straight(40), 40 * 32768 - 700, true),
        fixture.synthetic(4096, &scattered, 99 * P + 77, true),
        fixture.synthetic(32768, &straight(40), 40 * 32768 - 700, false),
        fixture.synthetic(1024, &small, 99 * 1024 + 77, true),
    ]
}

fn unload_under_load(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    let (files, own) =
        (busy_files(fixture), fixture.synthetic(32768, &straight(4), 4 * 32768, true));
    let [quick, slow] = [3, 40].map(|ms| Duration::from_millis(ms).into());
    fixture.disk.behave(Behaviour { latency: quick, ..Behaviour::default() });
    let module = std::sync::Mutex::new(fixture.module.take());
    let (sent, failed, done) = senders(fixture, &files, |sent, failed| -> Result<()> {
        // Even a slow host gets some load.
        let quiet = || sent.load(Ordering::Relaxed) + failed.load(Ordering::Relaxed) <= 50;
        for _ in (0..).take_while(|round| *round < 15 || *round < 500 && quiet()) {
            std::thread::sleep(Duration::from_millis(40));
            // One buf is in flight for long, in each round.
            vm_object::drop_pages(own.object);
            fixture.disk.behave(Behaviour { latency: slow, ..Behaviour::default() });
            let sending = Sending::begin(&own, 0, 9 * P, 0);
            fixture.disk.behave(Behaviour { latency: quick, ..Behaviour::default() });
            let mut module = module.lock().unwrap();
            if let Some(module) = module.take() {
                module.unload().map_err(|errno| anyhow!("kldunload under load, errno {errno}"))?;
            }
            *module = Some(Module::load(ko, &Options::default())?);
            let sent = sending.map(|sending| sending.finish(true, |_| ()));
            ensure!(sent == Some(Ok(())), "in flight during kldunload: {sent:?}");
        }
        Ok(())
    })?;
    done?;
    fixture.module = module.into_inner().unwrap();
    ensure!(sent > 50 && failed == 0, "{sent} requests sent, {failed} failed");
    Ok(())
}

fn parallel(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let files = busy_files(fixture);
    fixture.disk.behave(Behaviour {
        latency: Duration::from_micros(300).into(),
        fail_percent: 10,
        bad: vec![(2 << 20..(2 << 20) + 512, libc::EIO)],
        ..Behaviour::default()
    });
    let (sent, failed, ()) = senders(fixture, &files, |sent, failed| {
        let begin = Instant::now();
        let seconds = |n| begin.elapsed() >= Duration::from_secs(n);
        let few = || sent.load(Ordering::Relaxed) <= 100 || failed.load(Ordering::Relaxed) == 0;
        while !seconds(3) || few() && !seconds(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
    })?;
    ensure!(sent > 100 && failed > 0, "{sent} requests sent, {failed} failed");
    Ok(())
}

/// A forced unmount frees the file, its mount and its memory while bufs are in flight.
/// It must not wait for a thread that is still in iodone of a finished request.
fn forced_unmount(fixture: &mut Fixture, _: &Path) -> Result<()> {
    fixture
        .disk
        .behave(Behaviour { latency: Duration::from_millis(4).into(), ..Behaviour::default() });
    let mut file = fixture.synthetic(32768, &straight(40), 40 * 32768 - 700, true);
    for round in 0..20 {
        let first = round * 16 * P;
        // Until the file is gone, or for ever in a module that waits for this.
        sendfile::LINGER.store(5_000_000, Ordering::Relaxed);
        let sending = Sending::begin(&file, first, 9 * P, 20)
            .ok_or_else(|| anyhow!("refused before the unmount"))?;
        let new = fixture.remount(&file, round % 2 == 0);
        ensure!(Sending::begin(&file, 0, P, 0).is_none(), "a file that is gone is sent");
        let mut got = Vec::new();
        let sent = sending.finish(false, |bytes| got.extend_from_slice(bytes));
        let want = (first..first + 9 * P).map(|at| fixture.byte(&new, at));
        ensure!(sent == Ok(()) && want.eq(got.iter().copied()), "round {round}: {sent:?}");
        sendfile::linger_no_more();
        file = new;
    }
    Ok(())
}
