use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const ROOMY: Capacity = Capacity {
    running: 1000,
    starting: 1000,
    cpu_milli: u64::MAX,
    memory: u64::MAX,
    queued: 1000,
};

fn limits(tenant: &str) -> FlowLimits {
    FlowLimits {
        tenant: tenant.into(),
        reserved: None,
        most: None,
        queued: 1000,
    }
}

fn queue(capacity: Capacity, flows: &[(&str, FlowLimits)]) -> Queue {
    let mut queue = Queue::new(capacity);
    for (name, limits) in flows {
        queue.configure(name, limits.clone());
    }
    queue
}

/// The names of the flows that are served, when each request ends before the next one begins.
fn order(queue: &mut Queue, tickets: &[(Ticket, &'static str)]) -> Vec<&'static str> {
    let mut served = Vec::new();
    while let Some(ticket) = queue.admit() {
        served.push(tickets.iter().find(|(one, _)| *one == ticket).unwrap().1);
        queue.leave(ticket);
    }
    served
}

#[test]
fn a_burst_of_one_function_does_not_delay_another() {
    let one = Capacity {
        running: 1,
        ..ROOMY
    };
    let mut queue = queue(one, &[("a", limits("t")), ("b", limits("t"))]);
    let mut tickets: Vec<_> = (0..50).map(|_| (queue.arrive("a").unwrap(), "a")).collect();
    for _ in 0..3 {
        tickets.push((queue.arrive("b").unwrap(), "b"));
    }
    let served = order(&mut queue, &tickets);
    assert_eq!(served.len(), 53);
    assert_eq!(
        served.iter().take(6).filter(|name| **name == "b").count(),
        3
    );
}

#[test]
fn tenants_share_alike_however_many_functions_they_have() {
    let one = Capacity {
        running: 1,
        ..ROOMY
    };
    let names = ["a1", "a2", "a3", "b"];
    let mut flows: Vec<_> = names[..3].iter().map(|name| (*name, limits("a"))).collect();
    flows.push(("b", limits("b")));
    let mut queue = queue(one, &flows);
    let mut tickets = Vec::new();
    for name in names {
        for _ in 0..30 {
            tickets.push((queue.arrive(name).unwrap(), name));
        }
    }
    let served = order(&mut queue, &tickets);
    let of_b = served.iter().take(40).filter(|name| **name == "b").count();
    assert_eq!(of_b, 20);
}

#[test]
fn long_requests_get_fewer_turns_than_short_ones() {
    let one = Capacity {
        running: 1,
        ..ROOMY
    };
    let mut queue = queue(one, &[("long", limits("t")), ("short", limits("t"))]);
    for (name, ms) in [("long", 90), ("short", 10)] {
        let time = Duration::from_millis(ms);
        queue.learn(
            name,
            &Observed {
                time,
                cpu: time,
                memory: 0,
            },
        );
    }
    let mut tickets = Vec::new();
    for name in ["long", "short"] {
        for _ in 0..100 {
            tickets.push((queue.arrive(name).unwrap(), name));
        }
    }
    let served = order(&mut queue, &tickets);
    let long = served
        .iter()
        .take(50)
        .filter(|name| **name == "long")
        .count();
    assert_eq!(long, 5);
}

#[test]
fn a_reservation_is_a_right_and_a_limit() {
    let two = Capacity {
        running: 4,
        ..ROOMY
    };
    let reserved = FlowLimits {
        reserved: Some(2),
        ..limits("t")
    };
    let mut queue = queue(two, &[("r", reserved), ("a", limits("t"))]);
    for _ in 0..5 {
        queue.arrive("a").unwrap();
    }
    assert_eq!((0..5).filter(|_| queue.admit().is_some()).count(), 2);
    for _ in 0..5 {
        queue.arrive("r").unwrap();
    }
    assert_eq!((0..5).filter(|_| queue.admit().is_some()).count(), 2);
    assert_eq!(queue.counts("r"), (3, 2));
    // Without the reservation the room is everybody's, and what runs is counted there.
    queue.configure("r", limits("t"));
    assert!(queue.admit().is_none());
}

#[test]
fn what_cannot_wait_is_refused_and_told_whose_limit_it_was() {
    let capacity = Capacity {
        running: 2,
        queued: 3,
        ..ROOMY
    };
    let one = FlowLimits {
        most: Some(1),
        queued: 1,
        ..limits("t")
    };
    let none = FlowLimits {
        reserved: Some(0),
        ..limits("t")
    };
    let mut queue = queue(
        capacity,
        &[("one", one), ("none", none), ("a", limits("t"))],
    );
    assert_eq!(queue.arrive("none").unwrap_err().limit, Limit::Function);
    queue.arrive("one").unwrap();
    queue.admit().unwrap();
    queue.arrive("one").unwrap();
    assert_eq!(queue.arrive("one").unwrap_err().limit, Limit::Function);
    queue.arrive("a").unwrap();
    queue.admit().unwrap();
    queue.arrive("a").unwrap();
    queue.arrive("a").unwrap();
    let throttle = queue.arrive("a").unwrap_err();
    assert_eq!(
        throttle,
        Throttle {
            limit: Limit::Node,
            retry_after_s: 1
        }
    );
    queue.learn(
        "a",
        &Observed {
            time: Duration::from_secs(10),
            cpu: Duration::ZERO,
            memory: 0,
        },
    );
    assert_eq!(queue.arrive("a").unwrap_err().retry_after_s, 30);
    assert_eq!(queue.arrive("unknown").unwrap_err().limit, Limit::Function);
}

#[test]
fn processors_hold_back_only_who_has_something_running() {
    let capacity = Capacity {
        cpu_milli: 2000,
        ..ROOMY
    };
    let mut queue = queue(capacity, &[("a", limits("t")), ("b", limits("t"))]);
    let second = Duration::from_secs(1);
    for name in ["a", "b"] {
        queue.learn(
            name,
            &Observed {
                time: second,
                cpu: second,
                memory: 0,
            },
        );
    }
    let first: Vec<_> = (0..5).map(|_| queue.arrive("a").unwrap()).collect();
    assert_eq!((0..5).filter(|_| queue.admit().is_some()).count(), 2);
    let b = queue.arrive("b").unwrap();
    assert_eq!(queue.admit(), Some(b));
    assert_eq!(queue.admit(), None);
    queue.leave(b);
    assert_eq!(queue.admit(), None);
    queue.leave(first[0]);
    assert_eq!(queue.admit(), Some(first[2]));
}

#[test]
fn a_large_request_gets_its_memory_in_the_end() {
    let capacity = Capacity {
        memory: 100,
        ..ROOMY
    };
    let mut queue = queue(
        capacity,
        &[
            ("large", limits("t")),
            ("small", limits("t")),
            ("huge", limits("t")),
        ],
    );
    for (name, memory) in [("large", 90), ("small", 20), ("huge", 1000)] {
        queue.learn(
            name,
            &Observed {
                time: Duration::from_millis(1),
                cpu: Duration::ZERO,
                memory,
            },
        );
    }
    let small = queue.arrive("small").unwrap();
    assert_eq!(queue.admit(), Some(small));
    let large = queue.arrive("large").unwrap();
    let more = queue.arrive("small").unwrap();
    // The second small one has one running, and may go on when the large one does not wait before it.
    assert_eq!(queue.admit(), None);
    queue.leave(small);
    assert_eq!(queue.admit(), Some(large));
    assert_eq!(queue.admit(), None);
    queue.leave(large);
    assert_eq!(queue.admit(), Some(more));
    queue.leave(more);
    // What is larger than everything runs alone.
    let huge = queue.arrive("huge").unwrap();
    assert_eq!(queue.admit(), Some(huge));
}

#[test]
fn so_many_start_at_a_time() {
    let capacity = Capacity {
        starting: 3,
        ..ROOMY
    };
    let mut queue = queue(capacity, &[("a", limits("t")), ("b", limits("t"))]);
    let tickets: Vec<_> = (0..4).map(|_| queue.arrive("a").unwrap()).collect();
    // One is left for a function that has none.
    assert_eq!((0..4).filter(|_| queue.admit().is_some()).count(), 2);
    let others: Vec<_> = (0..2).map(|_| queue.arrive("b").unwrap()).collect();
    assert_eq!(queue.admit(), Some(others[0]));
    assert_eq!(queue.admit(), None);
    queue.started(tickets[0]);
    queue.started(tickets[0]);
    assert_eq!(queue.admit(), None);
    queue.started(others[0]);
    // Now that there are two, it is the turn of the first.
    assert_eq!(queue.admit(), Some(tickets[2]));
    assert_eq!(queue.admit(), Some(others[1]));
    assert_eq!(queue.admit(), None);
    queue.leave(others[1]);
    assert_eq!(queue.admit(), None);
    queue.leave(tickets[1]);
    assert_eq!(queue.admit(), Some(tickets[3]));
    assert_eq!(queue.totals(), (0, 2, 4));
}

#[test]
fn where_one_starts_at_a_time_all_share_it() {
    let capacity = Capacity {
        starting: 1,
        ..ROOMY
    };
    let mut queue = queue(capacity, &[("a", limits("t"))]);
    let tickets: Vec<_> = (0..2).map(|_| queue.arrive("a").unwrap()).collect();
    assert_eq!(queue.admit(), Some(tickets[0]));
    assert_eq!(queue.admit(), None);
    queue.started(tickets[0]);
    assert_eq!(queue.admit(), Some(tickets[1]));
}

/// What happens, with numbers that are taken modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    Arrive(usize),
    Admit,
    Started(usize),
    Leave(usize),
    Limits(usize, Option<u32>, Option<u32>, usize),
    Retire(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4usize).prop_map(Step::Arrive),
        6 => Just(Step::Admit),
        2 => any::<usize>().prop_map(Step::Started),
        4 => any::<usize>().prop_map(Step::Leave),
        1 => (0..4usize, proptest::option::of(0..3u32), proptest::option::of(0..4u32), 0..2usize)
            .prop_map(|(flow, reserved, most, tenant)| Step::Limits(flow, reserved, most, tenant)),
        1 => (0..4usize).prop_map(Step::Retire),
    ]
}

/// The oracle: lists, and everything counted anew each time.
#[derive(Default)]
struct Oracle {
    /// Ticket, generation of the flow, state; in the order of arrival.
    requests: Vec<(Ticket, usize, State)>,
    /// For each flow that ever was: index of its name, limits, and whether it is known.
    flows: Vec<(usize, FlowLimits, bool)>,
}

impl Oracle {
    fn flow(&self, name: usize) -> Option<usize> {
        self.flows
            .iter()
            .position(|(n, _, known)| *n == name && *known)
    }

    fn count(&self, flow: usize, state: impl Fn(State) -> bool) -> usize {
        let of = |(_, f, s): &&(Ticket, usize, State)| *f == flow && state(*s);
        self.requests.iter().filter(of).count()
    }
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

proptest! {
    #[test]
    fn the_queue_does_what_lists_would(steps in prop::collection::vec(step(), 1..200)) {
        let capacity = Capacity { running: 5, starting: 3, queued: 6, ..ROOMY };
        let mut queue = Queue::new(capacity);
        let mut oracle = Oracle::default();
        for (index, name) in NAMES.iter().enumerate() {
            let limits = FlowLimits { queued: 3, ..limits("x") };
            queue.configure(name, limits.clone());
            oracle.flows.push((index, limits, true));
        }
        for step in steps {
            match step {
                Step::Arrive(name) => {
                    let flow = oracle.flow(name);
                    let waiting = flow.map_or(0, |flow| oracle.count(flow, |s| s == State::Queued));
                    match queue.arrive(NAMES[name]) {
                        Ok(ticket) => {
                            prop_assert!(oracle.requests.iter().all(|(known, ..)| *known != ticket));
                            oracle.requests.push((ticket, flow.unwrap(), State::Queued));
                        }
                        Err(throttle) => {
                            prop_assert!(throttle.retry_after_s >= 1);
                            // Refused only for a reason.
                            if let Some(flow) = flow {
                                let limits = &oracle.flows[flow].1;
                                let all = oracle.requests.iter().filter(|(_, _, s)| *s == State::Queued).count();
                                prop_assert!(
                                    limits.reserved == Some(0) || limits.most == Some(0) || waiting >= 3 || all >= 6
                                );
                            }
                        }
                    }
                }
                Step::Admit => {
                    let admitted = queue.admit();
                    if let Some(ticket) = admitted {
                        let at = oracle.requests.iter().position(|(t, ..)| *t == ticket).unwrap();
                        let flow = oracle.requests[at].1;
                        // The first of its flow.
                        let first = oracle.requests.iter().position(|(_, f, s)| *f == flow && *s == State::Queued);
                        prop_assert_eq!(first, Some(at));
                        oracle.requests[at].2 = State::Starting;
                    }
                    // The limits hold at every admission, and without one there was a reason.
                    let running = |s| s != State::Queued;
                    let all = oracle.requests.iter().filter(|(_, _, s)| running(*s)).count();
                    let starting = oracle.requests.iter().filter(|(_, _, s)| *s == State::Starting).count();
                    let reserved: u32 = oracle.flows.iter().filter(|f| f.2).filter_map(|f| f.1.reserved).sum();
                    let unreserved: usize = (0..oracle.flows.len())
                        .filter(|flow| oracle.flows[*flow].1.reserved.is_none() || !oracle.flows[*flow].2)
                        .map(|flow| oracle.count(flow, running))
                        .sum();
                    let room = 5usize.saturating_sub(reserved as usize).max(1);
                    if let Some(ticket) = admitted {
                        let flow = oracle.requests.iter().find(|(t, ..)| *t == ticket).unwrap().1;
                        let (_, limits, known) = &oracle.flows[flow];
                        prop_assert!(all <= 5);
                        prop_assert!(starting <= 3);
                        let own = oracle.count(flow, running);
                        // The last start is of who had none.
                        let own_starts = oracle.count(flow, |s| s == State::Starting);
                        prop_assert!(starting < 3 || own_starts == 1);
                        let reserved = limits.reserved.filter(|_| *known);
                        prop_assert!([reserved, limits.most].iter().flatten().all(|limit| own <= *limit as usize));
                        prop_assert!(reserved.is_some() || unreserved <= room);
                    } else if all < 5 && starting < 3 {
                        for flow in 0..oracle.flows.len() {
                            let (_, limits, known) = &oracle.flows[flow];
                            let reserved = limits.reserved.filter(|_| *known);
                            let own = oracle.count(flow, running);
                            let is_held = [reserved, limits.most].iter().flatten().any(|limit| own >= *limit as usize)
                                || (reserved.is_none() && unreserved >= room)
                                || (starting == 2 && oracle.count(flow, |s| s == State::Starting) > 0);
                            prop_assert!(is_held || oracle.count(flow, |s| s == State::Queued) == 0);
                        }
                    }
                }
                Step::Started(which) if !oracle.requests.is_empty() => {
                    let at = which % oracle.requests.len();
                    queue.started(oracle.requests[at].0);
                    if oracle.requests[at].2 == State::Starting {
                        oracle.requests[at].2 = State::Running;
                    }
                }
                Step::Leave(which) if !oracle.requests.is_empty() => {
                    let (ticket, ..) = oracle.requests.remove(which % oracle.requests.len());
                    queue.leave(ticket);
                    queue.leave(ticket);
                }
                Step::Started(_) | Step::Leave(_) => {}
                Step::Limits(name, reserved, most, tenant) => {
                    let new = FlowLimits { reserved, most, queued: 3, ..limits(["x", "y"][tenant]) };
                    queue.configure(NAMES[name], new.clone());
                    match oracle.flow(name) {
                        Some(flow) => oracle.flows[flow].1 = new,
                        None => oracle.flows.push((name, new, true)),
                    }
                }
                Step::Retire(name) => {
                    queue.retire(NAMES[name]);
                    if let Some(flow) = oracle.flow(name) {
                        oracle.flows[flow].2 = false;
                    }
                }
            }
            // Every request is where it is said to be, and the sums are right.
            for (ticket, _, state) in &oracle.requests {
                prop_assert_eq!(queue.state(*ticket), Some(*state));
            }
            let count = |wanted: fn(State) -> bool| oracle.requests.iter().filter(|(_, _, s)| wanted(*s)).count() as u32;
            prop_assert_eq!(
                queue.totals(),
                (count(|s| s == State::Queued), count(|s| s == State::Starting), count(|s| s != State::Queued))
            );
            for (name, text) in NAMES.iter().enumerate() {
                let expected = oracle.flow(name).map_or((0, 0), |flow| {
                    (oracle.count(flow, |s| s == State::Queued), oracle.count(flow, |s| s != State::Queued) as u32)
                });
                prop_assert_eq!(queue.counts(text), expected);
            }
        }
        // When everybody has left, nothing is left of them.
        for (ticket, ..) in &oracle.requests {
            queue.leave(*ticket);
        }
        for name in NAMES {
            queue.retire(name);
        }
        prop_assert!(queue.flows.is_empty() && queue.tenants.is_empty() && queue.requests.is_empty());
        prop_assert_eq!((queue.used, queue.reserved, queue.unreserved), (Share::default(), 0, 0));
    }

    /// Flows that always have something waiting get the same number of turns.
    #[test]
    fn nobody_who_waits_is_more_than_one_turn_behind(flows in 2..5usize, running in 1..4u32, turns in 1..100usize) {
        let mut queue = Queue::new(Capacity { running, ..ROOMY });
        let mut served = vec![0usize; flows];
        let mut tickets = HashMap::new();
        for (flow, name) in NAMES.iter().enumerate().take(flows) {
            queue.configure(name, limits("t"));
            for _ in 0..turns {
                tickets.insert(queue.arrive(name).unwrap(), flow);
            }
        }
        let mut seen = HashSet::new();
        for _ in 0..turns {
            let Some(ticket) = queue.admit() else { break };
            prop_assert!(seen.insert(ticket));
            served[tickets[&ticket]] += 1;
            queue.leave(ticket);
            let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
            prop_assert!(most - least <= 1);
        }
    }

    /// Processors, against lists: who is let in has room or is the first of its flow, who is not has neither, and what rests
    /// takes none.
    #[test]
    fn processors_are_for_those_that_use_them(
        shares in prop::collection::vec(0..1200u64, 3),
        steps in prop::collection::vec((0..5u8, any::<usize>()), 1..200),
    ) {
        const ROOM: u64 = 1000;
        let mut queue = Queue::new(Capacity { cpu_milli: ROOM, ..ROOMY });
        for (name, share) in NAMES.iter().zip(&shares) {
            queue.configure(name, limits("t"));
            let (time, cpu) = (Duration::from_millis(1), Duration::from_micros(*share));
            queue.learn(name, &Observed { time, cpu, memory: 0 });
        }
        // Ticket, flow, whether it runs, whether it rests; in the order of arrival.
        let mut requests: Vec<(Ticket, usize, bool, bool)> = Vec::new();
        let used = |requests: &[(Ticket, usize, bool, bool)]| -> u64 {
            requests.iter().filter(|r| r.2 && !r.3).map(|r| shares[r.1]).sum()
        };
        for (step, which) in steps {
            let at = which.checked_rem(requests.len());
            match (step, at) {
                (0, _) => {
                    let flow = which % 3;
                    requests.push((queue.arrive(NAMES[flow]).unwrap(), flow, false, false));
                }
                (1, _) => {
                    let may = |flow: usize| {
                        let is_first = !requests.iter().any(|r| r.1 == flow && r.2);
                        let used = used(&requests);
                        is_first || used == 0 || used + shares[flow] <= ROOM
                    };
                    let next = |flow: usize| requests.iter().position(|r| r.1 == flow && !r.2);
                    let possible: Vec<usize> = (0..3).filter(|flow| may(*flow)).filter_map(next).collect();
                    match queue.admit() {
                        Some(ticket) => {
                            let at = requests.iter().position(|r| r.0 == ticket).unwrap();
                            prop_assert!(possible.contains(&at));
                            requests[at].2 = true;
                        }
                        None => prop_assert!(possible.is_empty()),
                    }
                }
                (2 | 3, Some(at)) => {
                    queue.rests(requests[at].0, step == 2);
                    // One that waits has nothing to give back.
                    requests[at].3 = requests[at].2 && step == 2;
                }
                (4, Some(at)) => queue.leave(requests.remove(at).0),
                _ => {}
            }
            prop_assert_eq!(queue.used.cpu_milli, used(&requests));
        }
        // If all that run rest, everybody who waits gets in.
        while requests.iter().any(|r| !r.2) {
            for request in requests.iter().filter(|r| r.2) {
                queue.rests(request.0, true);
            }
            let ticket = queue.admit();
            prop_assert!(ticket.is_some());
            requests.iter_mut().find(|r| Some(r.0) == ticket).unwrap().2 = true;
        }
        requests.iter().for_each(|r| queue.leave(r.0));
        prop_assert_eq!(queue.used, Share::default());
    }
}
