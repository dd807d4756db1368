//! The machine in a jailed process, which can open nothing: it is given its pool, its disks and a way for its connections.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use rouse_pool::keeper::PagerHandle;
use rouse_pool::snapshot_store::StoredSnapshot;
use rouse_pool::{PoolId, SparsePool};
use rouse_snapshot::model::MachineSnapshot;
use rouse_vmm::Ended;
use rouse_vmm::agent::{API_PORT, Agent, CONTROL_PORT, OUTPUT_PORT};
use rouse_vmm::devices::virtio::Disk;
use rouse_vmm::jail::Jail;
use rouse_vmm::zygote::{Connections, GivenConnections, GivenDevices, GivenPool, Incoming, Ready};
use serde_json::Value;

use crate::api::Api;
use crate::{PATIENCE, elsewhere, goes_on, guest};

const JAIL: Jail = Jail {
    uid: 64_125,
    gid: 64_126,
};

/// Its answer to the next event.
pub fn answers(pager: &PagerHandle, directory: &Path, disks: &[Disk], id: u32) -> Value {
    let store = elsewhere::store(directory);
    let stored: StoredSnapshot<MachineSnapshot> =
        store.open_as(elsewhere::NAME).expect("it is stored");
    let sparse = SparsePool::new("jailed", stored.snapshot.pool_pages).expect("there is room");
    let source = store.source(&stored).expect("its files can be opened");
    let pool = pager
        .add_pool(PoolId(id.into()), sparse, &source)
        .expect("the pager takes it");
    let registered = pool.registered();
    let faults = pager.stats().faults;

    let program = std::env::current_exe().expect("this program has a path");
    let ready = Ready::start(&program, &JAIL, None)
        .unwrap_or_else(|error| panic!("no VMM: {error}: {error:?}"));
    let (connections, socket) = Connections::pair().expect("sockets can be made");
    let devices = GivenDevices {
        disks,
        connections: Some(GivenConnections {
            socket: socket.as_fd(),
            ports: &[CONTROL_PORT, API_PORT.into(), OUTPUT_PORT],
        }),
    };
    let (said, console) = rustix::pipe::pipe().expect("there are pipes");
    thread::spawn(move || io::copy(&mut File::from(said), &mut io::stdout()));
    let mut registration = None;
    let running = ready
        .restore(
            &stored.snapshot,
            &[GivenPool::Registered(
                &registered,
                Some(stored.binding.pool),
            )],
            &devices,
            console.as_fd(),
            |uffd, mappings| {
                registration = Some(pager.register(uffd, mappings, false)?);
                Ok(())
            },
        )
        .unwrap_or_else(|error| panic!("it cannot be restored: {error}: {error:?}"));
    drop((socket, console));

    let (agent, api, _rest) = first_two(&connections);
    let (answer, _waits) = goes_on(agent, api, id);
    assert_eq!(running.wait().expect("it is switched off"), Ended::Off);
    let more = std::iter::from_fn(|| connections.accept().expect("it can wait"));
    let asked = more
        .filter(|incoming| incoming.ports.host == u32::from(API_PORT))
        .any(|incoming| guest::asks(incoming.stream));
    assert!(!asked, "the runtime has connected again");
    assert!(pager.stats().faults > faults);
    answer
}

/// Who waits in the guest: the runtime has connected before its function did.
fn first_two(connections: &Connections) -> (Agent, Api, Vec<UnixStream>) {
    let (mut agent, mut api, mut rest) = (None, None, Vec::new());
    while agent.is_none() || api.is_none() {
        let incoming = connections.accept().expect("it can wait");
        let Incoming { ports, stream } = incoming.expect("the VMM is there");
        if ports.host == CONTROL_PORT {
            agent = Some(Agent::new(stream, PATIENCE).expect("it is a socket"));
        } else if ports.host == u32::from(API_PORT) && api.is_none() {
            stream
                .set_read_timeout(Some(PATIENCE))
                .expect("it can be set");
            api = Some(Api(BufReader::new(stream)));
        } else {
            // What the function prints is nobody's business here, but it must be able to.
            rest.push(stream);
        }
    }
    let (agent, api) = agent.zip(api).expect("both are there");
    (agent, api, rest)
}
