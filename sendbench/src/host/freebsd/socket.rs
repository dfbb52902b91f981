// SPDX-License-Identifier: BSD-2-Clause
//! Loopback TCP, kqueue(2) and sendfile(2).

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    host::{Client, Event, Server, Stop},
    result::SendOptions,
};

/// A kqueue and where its events come.
pub struct Queue {
    kqueue: OwnedFd,
    listener: TcpListener,
}

impl Queue {
    /// With a listener on a free port.
    pub fn new() -> Result<Self> {
        // SAFETY: no arguments.
        let fd = unsafe { libc::kqueue() };
        ensure!(fd >= 0, "kqueue: {}", io::Error::last_os_error());
        // SAFETY: a descriptor that is ours.
        let kqueue = unsafe { OwnedFd::from_raw_fd(fd) };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("cannot listen on 127.0.0.1: is lo0 up? (ifconfig lo0 127.0.0.1)")?;
        Ok(Self { kqueue, listener })
    }

    /// Wait for events.
    pub fn wait(&self, time: Duration, events: &mut Vec<Event>) -> io::Result<()> {
        // SAFETY: integers and null pointers.
        let mut list: [libc::kevent; 64] = unsafe { std::mem::zeroed() };
        let time = libc::timespec {
            tv_sec: time.as_secs() as libc::time_t,
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        // SAFETY: a place for so many events.
        let got = unsafe {
            libc::kevent(
                self.kqueue.as_raw_fd(),
                std::ptr::null(),
                0,
                list.as_mut_ptr(),
                list.len() as i32,
                &time,
            )
        };
        if got < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        events.extend(list[..got as usize].iter().map(|event| Event {
            connection: event.udata as usize,
            readable: event.filter == libc::EVFILT_READ,
            writable: event.filter == libc::EVFILT_WRITE,
        }));
        Ok(())
    }

    /// A connection, whose server's end is non-blocking and edge-triggered as nginx's are.
    pub fn connect(
        &self,
        connection: usize,
        options: &SendOptions,
    ) -> Result<(TcpServer, TcpClient)> {
        let address = self.listener.local_addr()?;
        let client = TcpStream::connect(address).context("cannot connect over loopback TCP")?;
        let (server, _) = self.listener.accept()?;
        server.set_nonblocking(true)?;
        for end in [&server, &client] {
            end.set_nodelay(true)?;
        }
        if let Some(bytes) = options.sndbuf {
            let bytes = bytes as libc::c_int;
            // SAFETY: an int.
            let done = unsafe {
                libc::setsockopt(
                    server.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_SNDBUF,
                    (&raw const bytes).cast(),
                    size_of_val(&bytes) as libc::socklen_t,
                )
            };
            ensure!(
                done == 0,
                "SO_SNDBUF {bytes}: {} (kern.ipc.maxsockbuf limits it)",
                io::Error::last_os_error()
            );
        }
        let changes = [libc::EVFILT_READ, libc::EVFILT_WRITE].map(|filter| {
            // SAFETY: integers and null pointers.
            let mut change: libc::kevent = unsafe { std::mem::zeroed() };
            change.ident = server.as_raw_fd() as usize;
            change.filter = filter;
            change.flags = libc::EV_ADD | libc::EV_CLEAR;
            change.udata = connection as *mut libc::c_void;
            change
        });
        // SAFETY: two changes.
        let done = unsafe {
            libc::kevent(
                self.kqueue.as_raw_fd(),
                changes.as_ptr(),
                changes.len() as i32,
                std::ptr::null_mut(),
                0,
                std::ptr::null(),
            )
        };
        ensure!(done == 0, "kevent: {}", io::Error::last_os_error());
        Ok((TcpServer(server), TcpClient(client)))
    }
}

/// The server's end.
pub struct TcpServer(TcpStream);

impl Server for TcpServer {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

/// The client's end.
pub struct TcpClient(TcpStream);

impl Client for TcpClient {
    fn write(&mut self, request: &[u8]) -> io::Result<()> {
        self.0.write_all(request)
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buf) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// sendfile(2).
pub fn sendfile(
    file: &File,
    server: &TcpServer,
    offset: u64,
    len: u64,
    options: &SendOptions,
) -> io::Result<(u64, Stop)> {
    let mut flags = i32::from(options.readahead) << 16;
    for (wanted, flag) in [
        (options.nodiskio, libc::SF_NODISKIO),
        (options.nocache, libc::SF_NOCACHE),
        (options.user_readahead, libc::SF_USER_READAHEAD),
    ] {
        if wanted {
            flags |= flag;
        }
    }
    let mut sent = 0;
    // SAFETY: descriptors that are open, and a place for the count.
    let done = unsafe {
        libc::sendfile(
            file.as_raw_fd(),
            server.0.as_raw_fd(),
            offset as i64,
            len as usize,
            std::ptr::null_mut(),
            &mut sent,
            flags,
        )
    };
    let sent = sent as u64;
    if done == 0 {
        return Ok((sent, Stop::Done));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Ok((sent, Stop::Full)),
        Some(libc::EBUSY) => Ok((sent, Stop::Busy)),
        // What was sent before a signal came counts; the caller goes on.
        Some(libc::EINTR) => Ok((sent, Stop::Busy)),
        _ => Err(error),
    }
}
