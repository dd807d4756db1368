//! Machines that are restored by jailed VMMs, which were started ahead.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use rouse_pool::keeper::PagerHandle;
use rouse_pool::pagemap::Pagemap;
use rouse_pool::{PagedPool, RegisteredPool};
use rouse_snapshot::model::PAGE_SIZE;
use rouse_vmm::agent::{self, API_PORT, Agent, CONTROL_PORT, OUTPUT_PORT};
use rouse_vmm::devices::virtio::Disk;
use rouse_vmm::jail::Jail;
use rouse_vmm::zygote::{
    Connections, GivenConnections, GivenDevices, GivenPool, Incoming, Ready, Running,
};
use serde::Serialize;

use super::PATIENCE;
use super::api::Api;
use super::meter::{Meter, Spent};
use super::stored::{Stored, pages_of_addresses};
use super::subject;
use crate::output::error::Failed;

/// Whom a VMM becomes: nobody else on the host.
const JAIL: Jail = Jail {
    uid: 64_125,
    gid: 64_126,
};

/// Where pages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// From disk, as they are touched.
    Lazy,
    /// From disk, the working set ahead.
    Prefetch,
    /// From DRAM: another machine has brought them in.
    Dram,
}

impl Way {
    /// All, in the order in which they are measured: what is in DRAM was prefetched before.
    pub const ALL: [Self; 3] = [Self::Lazy, Self::Prefetch, Self::Dram];

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lazy => "disk, page by page",
            Self::Prefetch => "disk, working set ahead",
            Self::Dram => "DRAM",
        }
    }
}

/// One machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Restore {
    /// From an order to an answer, in all processes: the node's, the pager, the VMM.
    #[serde(flatten)]
    pub spent: Spent,
    /// Faults that the pager has served.
    pub faults: u64,
    /// Connections that the guest has opened anew.
    pub reconnects: u64,
    /// Pages of the guest that are its own, because it wrote them.
    pub written_pages: u64,
    /// Memory that only this VMM has, with those pages, KiB.
    pub private_kib: u64,
}

impl Restore {
    /// What is the VMM's own, KiB.
    pub fn vmm_kib(&self) -> u64 {
        self.private_kib
            .saturating_sub(self.written_pages * PAGE_SIZE / 1024)
    }
}

/// Restores machines.
pub struct Restorer<'a> {
    /// Brings pages.
    pub pager: &'a PagerHandle,
    /// The program of a VMM.
    pub vmm: &'a Path,
    /// Their disks.
    pub disks: &'a [Disk],
}

impl Restorer<'_> {
    /// Restores a machine of `stored` in all ways; each answers one event.
    pub fn in_all_ways(
        &self,
        stored: &mut Stored<'_>,
        n: u64,
    ) -> Result<[(Way, Restore); 3], Failed> {
        let pool = stored.pool()?;
        let lazy = self.restore(stored, &pool, false, n)?;
        self.pager.remove_pool(&pool);
        let pool = stored.pool()?;
        let prefetch = self.restore(stored, &pool, true, n)?;
        let dram = self.restore(stored, &pool, true, n)?;
        self.pager.remove_pool(&pool);
        Ok([
            (Way::Lazy, lazy),
            (Way::Prefetch, prefetch),
            (Way::Dram, dram),
        ])
    }

    fn restore(
        &self,
        stored: &Stored<'_>,
        pool: &PagedPool,
        prefetch: bool,
        n: u64,
    ) -> Result<Restore, Failed> {
        let ready = Ready::start(self.vmm, &JAIL, None)?;
        let vmm = ready.vmm_pid()?;
        let registered: RegisteredPool = pool.registered();
        let (connections, socket) = Connections::pair()?;
        let devices = GivenDevices {
            disks: self.disks,
            connections: Some(GivenConnections {
                socket: socket.as_fd(),
                ports: &[CONTROL_PORT, API_PORT.into(), OUTPUT_PORT],
            }),
        };
        let (said, console) = rustix::pipe::pipe()?;
        thread::spawn(move || io::copy(&mut fs::File::from(said), &mut io::sink()));
        let snapshot = &stored.snapshot.snapshot;
        let (mut registration, mut base) = (None, None);
        let faults = self.pager.stats().faults;

        let meter = Meter::begin(&[self.pager.pager_pid(), vmm])?;
        let parents = stored.parents()?;
        let images = parents.iter().filter_map(|image| {
            let name = image.name.as_ref()?;
            Some(GivenPool::Image(
                image.source.as_fd(),
                name.pages,
                name.pool,
            ))
        });
        let own = GivenPool::Registered(&registered, Some(stored.snapshot.binding.pool));
        let pools: Vec<GivenPool<'_>> = std::iter::once(own).chain(images).collect();
        let running = ready.restore(
            snapshot,
            &pools,
            &devices,
            console.as_fd(),
            |uffd, mappings| {
                base = mappings
                    .first()
                    .zip(snapshot.memory.first())
                    .map(|(mapping, run)| mapping.address - run.address);
                registration = Some(self.pager.register(uffd, mappings, prefetch)?);
                Ok(())
            },
        )?;
        drop((socket, console));
        let mut open = Open::accept(&connections)?;
        open.agent.resume(agent::fresh()?)?;
        subject::call(&mut open.api, n)?;
        let spent = meter.read()?;

        open.api.next()?;
        let faults = self.pager.stats().faults - faults;
        let base = base.ok_or("the guest's memory lies in no pool")?;
        let memory = base..base + snapshot.hardware.memory_pages * PAGE_SIZE;
        let written = Pagemap::open(vmm.cast_signed())?.private_pages(&memory)?;
        let private_kib = anonymous_kib(vmm)?;
        let reconnects = open.end(running, &connections)?;
        drop(registration);
        Ok(Restore {
            spent,
            faults,
            reconnects,
            written_pages: pages_of_addresses(&written),
            private_kib,
        })
    }
}

/// The connections of a restored machine, which its guest finds open: one for its agent, one for the function, and one for
/// what that prints. Any other is one that the guest has opened since.
struct Open {
    agent: Agent,
    api: Api,
    output: Option<UnixStream>,
    /// Others.
    more: u64,
}

impl Open {
    /// Waits for the agent's and the function's.
    fn accept(connections: &Connections) -> Result<Self, Failed> {
        let (mut agent, mut api, mut output, mut more) = (None, None, None, 0);
        loop {
            let Incoming { ports, stream } = connections.accept()?.ok_or("the VMM has ended")?;
            let port = ports.host;
            if port == CONTROL_PORT && agent.is_none() {
                agent = Some(Agent::new(stream, PATIENCE)?);
            } else if port == u32::from(API_PORT) && api.is_none() {
                api = Some(Api::new(stream)?);
            } else if port == OUTPUT_PORT && output.is_none() {
                output = Some(stream);
            } else {
                more += 1;
            }
            (agent, api) = match (agent, api) {
                (Some(agent), Some(api)) => {
                    return Ok(Self {
                        agent,
                        api,
                        output,
                        more,
                    });
                }
                others => others,
            };
        }
    }

    /// Switches the machine off, and counts the connections that its guest has opened.
    fn end(self, running: Running, connections: &Connections) -> Result<u64, Failed> {
        let Self {
            agent,
            mut output,
            mut more,
            ..
        } = self;
        agent.off()?;
        running.wait()?;
        while let Some(Incoming { ports, stream }) = connections.accept()? {
            if ports.host == OUTPUT_PORT && output.is_none() {
                output = Some(stream);
            } else {
                more += 1;
            }
        }
        Ok(more)
    }
}

/// Memory of a process that lies in no file, neither in a pool: what nobody shares with it.
fn anonymous_kib(pid: u32) -> Result<u64, Failed> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    rollup
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok())
        .ok_or_else(|| "the kernel does not tell a VMM's memory".into())
}
