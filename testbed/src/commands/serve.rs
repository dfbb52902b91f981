// SPDX-License-Identifier: BSD-2-Clause
//! Serving a UFS image through the module.

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::{
    commands::options::Common,
    consumers::sendfile::sendfile,
    disk::{behaviour::Behaviour, ufs::Ufs},
    ffs::file::{Bmap, File, Mount},
    kernel::{proc, sysctl},
    kld::options::Options,
    scenarios::fixture::Fixture,
};

/// Make files of all shapes, an image of them, and serve it.
pub fn demo(common: &Common) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("asyncpager-demo-{}", std::process::id()));
    let result = demo_in(common, &dir);
    // Leave nothing behind, even after an error.
    let _ = std::fs::remove_dir_all(&dir);
    result
}

fn demo_in(common: &Common, dir: &Path) -> Result<()> {
    let source = dir.join("files");
    std::fs::create_dir_all(source.join("deep/er")).context("cannot make a temporary directory")?;
    let mut rng = fastrand::Rng::with_seed(common.seed);
    let mut write = |name: &str, size: usize, holes: &[std::ops::Range<usize>]| -> Result<()> {
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(size).collect();
        holes.iter().for_each(|hole| bytes[hole.clone()].fill(0));
        std::fs::write(source.join(name), bytes).with_context(|| format!("cannot write {name}"))
    };
    for size in [0, 1, 511, 512, 4095, 4096, 4097, 100_000] {
        write(&format!("{size}-bytes"), size, &[])?;
    }
    write("many-blocks", 3_000_001, &[])?;
    write("deep/er/indirect", 9_000_123, &[])?;
    write("sparse", 2_000_000, &[0..500_000, 700_000..1_500_000])?;
    for (version, block) in [(1, 4096), (1, 32768), (1, 65536), (2, 4096), (2, 32768)] {
        let image = dir.join(format!("{version}-{block}.img"));
        let options = format!("version={version},bsize={block},fsize={}", block / 8);
        let made = Command::new("makefs")
            .args(["-t", "ffs", "-o", &options, "-s", "64m"])
            .arg(&image)
            .arg(&source)
            .output()
            .context("cannot run makefs: `apt-get install makefs`")?;
        ensure!(made.status.success(), "makefs: {}", String::from_utf8_lossy(&made.stderr).trim());
        if !common.json {
            println!("UFS{version} with blocks of {block} bytes");
        }
        serve(common, &image, &source)?;
    }
    Ok(())
}

fn options(common: &Common) -> Options {
    Options {
        osreldate: common.osreldate,
        differs: common.differs,
        tunables: common.tunable.clone(),
        ..Options::default()
    }
}

/// Load the module and unload it: nothing must be left.
pub fn load(common: &Common, one_thread: bool) -> Result<()> {
    Fixture::new(Some(&common.ko), &options(common), Vec::new(), 512, common.seed, !one_thread)?
        .finish()
}

/// Serve every file of `image` and compare it with its twin in `source`.
pub fn serve(common: &Common, image: &Path, source: &Path) -> Result<()> {
    let bytes = std::fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let (inodes, block, ufs2) = {
        let ufs = Ufs::open(&bytes).with_context(|| image.display().to_string())?;
        (ufs.files().with_context(|| image.display().to_string())?, ufs.block, ufs.ufs2)
    };
    ensure!(!inodes.is_empty(), "{} holds no regular file", image.display());
    let fixture = Fixture::new(Some(&common.ko), &options(common), bytes, 512, common.seed, true)?;
    fixture.disk.behave(Behaviour {
        latency: Duration::from_millis(common.latency).into(),
        fail_percent: common.fail,
        ..Behaviour::default()
    });
    let mount = Mount { block, unmapped: !common.mapped, flags: 0, bmap: Bmap::Good };
    let files: Vec<_> = inodes.into_iter().map(|inode| fixture.open(inode, mount, ufs2)).collect();
    let total = files.iter().map(|file| file.inode.size).sum();
    let bar = if common.json { ProgressBar::hidden() } else { ProgressBar::new(total) };
    bar.set_style(ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}")?);
    let begin = Instant::now();
    let next = AtomicUsize::new(0);
    let failed = AtomicU64::new(0);
    let wrong = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..common.threads)
            .map(|n| {
                let (files, next, failed, bar) = (&files, &next, &failed, &bar);
                let mut rng = fastrand::Rng::with_seed(common.seed.wrapping_add(n));
                scope.spawn(move || -> Result<()> {
                    proc::attach();
                    while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        failed.fetch_add(send(file, source, &mut rng, bar)?, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().find_map(|worker| match worker.join() {
            Ok(result) => result.err(),
            Err(_) => Some(anyhow!("a sender panicked")),
        })
    });
    bar.finish_and_clear();
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    let failed = failed.load(Ordering::Relaxed);
    let counters = sysctl::counters();
    let seconds = begin.elapsed().as_secs_f64();
    if common.json {
        println!(
            "{}",
            json!({
                "image": image.display().to_string(), "files": files.len(), "bytes": total,
                "seconds": seconds, "requests_failed": failed, "counters": counters,
            })
        );
    } else {
        println!("{} files, {total} bytes, every byte right, {seconds:.2} s", files.len());
        for (name, value) in counters.iter().filter(|(_, value)| **value > 0) {
            println!("{name}: {value}");
        }
    }
    fixture.finish()?;
    if common.fail == 0 && failed > 0 {
        bail!("{failed} requests failed on a disk without errors");
    }
    Ok(())
}

/// Send one file in pieces; how many requests failed with an I/O error.
fn send(
    file: &Arc<File>,
    source: &Path,
    rng: &mut fastrand::Rng,
    bar: &ProgressBar,
) -> Result<u64> {
    let path = source.join(&file.inode.path);
    let want = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        want.len() as u64 == file.inode.size,
        "{} has another size in the image",
        path.display()
    );
    let (mut at, mut failed) = (0u64, 0);
    while at < file.inode.size {
        let len = rng.u64(1..300_000).min(file.inode.size - at);
        let mut got = Vec::new();
        match sendfile(file, at, len, rng.i32(0..64), rng.bool(), |bytes| {
            got.extend_from_slice(bytes)
        }) {
            Ok(()) => {
                let want = &want[at as usize..(at + len) as usize];
                if got != want {
                    let i = got.iter().zip(want).position(|(a, b)| a != b).unwrap_or(got.len());
                    bail!("{} is wrong from byte {}", file.inode.path, at + i as u64);
                }
            }
            Err(_) => failed += 1,
        }
        bar.inc(len);
        at += len;
    }
    Ok(failed)
}
