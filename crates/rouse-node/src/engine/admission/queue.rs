//! The decisions of admission, as a type without clocks, tasks or locks.
//!
//! Each function is a *flow* with a queue of its own, first in, first out. Who is next is decided by start-time fair queueing
//! (Goyal et al., SIGCOMM'96) on two levels: among the tenants, then among the flows of that tenant. Each has a virtual time
//! that grows by what its admitted requests are expected to take; the least is served first. One that was idle begins at the
//! present virtual time, so that nobody saves up.
//!
//! A flow whose turn it is may still have to wait:
//!
//! | reason | the others |
//! |---|---|
//! | it has as many requests running as it may | go on |
//! | it has no reservation, and what is not reserved is in use | go on: only reserved ones can |
//! | processors or memory are spoken for, and it has requests running | go on: it gets its next turn when one of its own ends |
//! | memory is spoken for, and it has none running | wait with it, else small requests could keep a large one out for ever |
//! | as many instances are being started as may be | wait with it |
//! | all but one of these are, and one of them is its own | go on: the last one is for who has none |
//!
//! A flow with nothing running is never held back by processors: a burst of one function cannot keep another from its first
//! request. And whatever the budgets are, one request runs.
//!
//! Requests may wait for each other: a function calls another one, or itself. So what is set aside of the processors is for
//! those that use them. A request that waits *rests*, and whoever it waits for has room; those that do not rest come to
//! their end. Nobody who is held back by processors can be waited for by all who hold him back.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::estimate::{Estimate, Observed};

/// What a node can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Requests that run or start.
    pub running: u32,
    /// Of these, requests whose instance is being started: what bounds the bandwidth of restores.
    pub starting: u32,
    /// Thousandths of processors that running requests are expected to use.
    pub cpu_milli: u64,
    /// Bytes that running requests are expected to use.
    pub memory: u64,
    /// Requests that wait, all flows together.
    pub queued: u32,
}

/// What one flow may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowLimits {
    /// Whose it is.
    pub tenant: String,
    /// Requests that only this flow may run, and no more than these.
    pub reserved: Option<u32>,
    /// Requests that it may run at most, without a right to them.
    pub most: Option<u32>,
    /// Requests that may wait.
    pub queued: u32,
}

/// Which limit a request has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Its function's own.
    Function,
    /// The node's.
    Node,
}

/// A request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    /// Why.
    pub limit: Limit,
    /// Seconds after which there is likely to be room.
    pub retry_after_s: u32,
}

/// A request, while it is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It waits.
    Queued,
    /// Its instance is being started.
    Starting,
    /// Its instance has the event.
    Running,
}

/// Longest time that is suggested to a refused client, seconds.
const LONGEST_RETRY_S: u64 = 60;

#[derive(Debug)]
struct Request {
    flow: usize,
    state: State,
    /// What was set aside for it when it was admitted.
    share: Share,
    /// It uses no processor at the moment: it sleeps, or waits for others. Its processors are not set aside.
    rests: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    cpu_milli: u64,
    memory: u64,
}

#[derive(Debug)]
struct Flow {
    limits: FlowLimits,
    waiting: VecDeque<Ticket>,
    running: u32,
    /// Of these, requests whose instance is being started.
    starting: u32,
    virtual_time: u64,
    estimate: Estimate,
    /// Its function is gone; it goes when its last request does.
    is_retired: bool,
}

/// A tenant's place among the tenants.
#[derive(Debug, Default)]
struct Tenant {
    virtual_time: u64,
    /// Virtual time of the flow that was served last.
    clock: u64,
    /// Flows that have requests waiting, by their virtual time.
    waiting: BTreeSet<(u64, usize)>,
    /// Flows that it has.
    flows: usize,
}

/// All flows.
#[derive(Debug)]
pub struct Queue {
    capacity: Capacity,
    names: BTreeMap<String, usize>,
    flows: HashMap<usize, Flow>,
    tenants: BTreeMap<String, Tenant>,
    requests: HashMap<Ticket, Request>,
    next_ticket: u64,
    next_flow: usize,
    /// Virtual time of the tenant that was served last.
    clock: u64,
    queued: u32,
    running: u32,
    /// Of these, of flows without reservation.
    unreserved: u32,
    /// Requests that flows have reserved.
    reserved: u32,
    starting: u32,
    used: Share,
}

/// Why a flow's first request does not go on.
enum Held {
    /// By something that only concerns this flow, or those like it.
    Itself,
    /// All others have to wait too.
    Everybody,
}

impl Queue {
    /// An empty one.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            names: BTreeMap::new(),
            flows: HashMap::new(),
            tenants: BTreeMap::new(),
            requests: HashMap::new(),
            next_ticket: 0,
            next_flow: 0,
            clock: 0,
            queued: 0,
            running: 0,
            unreserved: 0,
            reserved: 0,
            starting: 0,
            used: Share::default(),
        }
    }

    /// Makes a flow known, or changes its limits.
    pub fn configure(&mut self, name: &str, limits: FlowLimits) {
        let id = match self.names.get(name) {
            Some(id) => *id,
            None => {
                let id = self.next_flow;
                self.next_flow += 1;
                self.names.insert(name.to_owned(), id);
                id
            }
        };
        // Out, and in again as what it is from now on: one place where the sums change.
        let before = self.flows.remove(&id);
        let mut flow = match before {
            Some(flow) => {
                self.uncount(id, &flow);
                flow
            }
            None => Flow {
                limits: limits.clone(),
                waiting: VecDeque::new(),
                running: 0,
                starting: 0,
                virtual_time: 0,
                estimate: Estimate::default(),
                is_retired: false,
            },
        };
        let is_moved = flow.limits.tenant != limits.tenant;
        flow.limits = limits;
        let tenant = self.tenants.entry(flow.limits.tenant.clone()).or_default();
        tenant.flows += 1;
        if is_moved {
            flow.virtual_time = tenant.clock;
        }
        if !flow.waiting.is_empty() {
            enter(tenant, &mut flow, id, self.clock);
        }
        self.reserved += flow.limits.reserved.unwrap_or(0);
        self.unreserved += unreserved(&flow);
        self.flows.insert(id, flow);
    }

    /// A function is gone. Its requests that wait or run leave by themselves.
    pub fn retire(&mut self, name: &str) {
        let Some(id) = self.names.remove(name) else {
            return;
        };
        if let Some(flow) = self.flows.get_mut(&id) {
            if let Some(reserved) = flow.limits.reserved.take() {
                self.reserved -= reserved;
                self.unreserved += flow.running;
            }
            flow.is_retired = true;
            self.drop_if_over(id);
        }
    }

    /// Takes a flow that is being removed out of the sums.
    fn uncount(&mut self, id: usize, flow: &Flow) {
        self.reserved -= flow.limits.reserved.unwrap_or(0);
        self.unreserved -= unreserved(flow);
        let name = &flow.limits.tenant;
        if let Some(tenant) = self.tenants.get_mut(name) {
            tenant.waiting.remove(&(flow.virtual_time, id));
            tenant.flows -= 1;
            if tenant.flows == 0 {
                self.tenants.remove(name);
            }
        }
    }

    /// Requests that flows have reserved, all together.
    pub fn reserved(&self) -> u32 {
        self.reserved
    }

    /// A request of a flow, which must be known, comes. It waits until [`admit`](Self::admit) names it.
    pub fn arrive(&mut self, name: &str) -> Result<Ticket, Throttle> {
        let Some(&id) = self.names.get(name) else {
            return Err(Throttle {
                limit: Limit::Function,
                retry_after_s: 1,
            });
        };
        let is_node_full = self.queued >= self.capacity.queued;
        let is_free = self.is_free();
        let flow = &self.flows[&id];
        let is_barred = flow.limits.reserved == Some(0) || flow.limits.most == Some(0);
        // A request that does not have to wait needs no place to wait in.
        let goes_on = is_free && flow.waiting.is_empty() && self.held(flow).is_none();
        let is_full = flow.waiting.len() >= flow.limits.queued as usize;
        if is_barred || (!goes_on && (is_full || is_node_full)) {
            let limit = match self.held(flow) {
                _ if is_barred => Limit::Function,
                Some(_) if at_own_limit(flow) => Limit::Function,
                _ => Limit::Node,
            };
            return Err(Throttle {
                limit,
                retry_after_s: retry_after(flow),
            });
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.requests.insert(
            ticket,
            Request {
                flow: id,
                state: State::Queued,
                share: Share::default(),
                rests: false,
            },
        );
        let Some(flow) = self.flows.get_mut(&id) else {
            unreachable!("a flow that has a name is known");
        };
        let tenant = self.tenants.entry(flow.limits.tenant.clone()).or_default();
        if flow.waiting.is_empty() {
            enter(tenant, flow, id, self.clock);
        }
        flow.waiting.push_back(ticket);
        self.queued += 1;
        Ok(ticket)
    }

    /// Admits the request whose turn it is, if there is room for it.
    pub fn admit(&mut self) -> Option<Ticket> {
        let (tenant_name, id) = self.choose()?;
        let flow = self.flows.get_mut(&id)?;
        let ticket = flow.waiting.pop_front()?;
        let tenant = self.tenants.get_mut(&tenant_name)?;
        let work = flow.estimate.time_us;
        tenant.clock = flow.virtual_time;
        self.clock = tenant.virtual_time;
        tenant.waiting.remove(&(flow.virtual_time, id));
        flow.virtual_time = flow.virtual_time.saturating_add(work);
        tenant.virtual_time = tenant.virtual_time.saturating_add(work);
        if !flow.waiting.is_empty() {
            tenant.waiting.insert((flow.virtual_time, id));
        }
        let share = Share {
            cpu_milli: flow.estimate.cpu_milli,
            memory: flow.estimate.memory,
        };
        flow.running += 1;
        flow.starting += 1;
        self.unreserved += u32::from(flow.limits.reserved.is_none());
        self.queued -= 1;
        self.running += 1;
        self.starting += 1;
        self.used.cpu_milli += share.cpu_milli;
        self.used.memory += share.memory;
        let request = self.requests.get_mut(&ticket)?;
        request.state = State::Starting;
        request.share = share;
        Some(ticket)
    }

    /// The instance of a request has been started. Says nothing about one that is gone, or was started before.
    pub fn started(&mut self, ticket: Ticket) {
        if let Some(request) = self.requests.get_mut(&ticket)
            && request.state == State::Starting
        {
            request.state = State::Running;
            self.starting -= 1;
            if let Some(flow) = self.flows.get_mut(&request.flow) {
                flow.starting -= 1;
            }
        }
    }

    /// A request that was admitted uses no processor any more, or does again. Says nothing about any other.
    pub fn rests(&mut self, ticket: Ticket, rests: bool) {
        let Some(request) = self.requests.get_mut(&ticket) else {
            return;
        };
        if request.state == State::Queued || request.rests == rests {
            return;
        }
        request.rests = rests;
        match rests {
            true => self.used.cpu_milli -= request.share.cpu_milli,
            false => self.used.cpu_milli += request.share.cpu_milli,
        }
    }

    /// A request is over, wherever it is: answered, failed, or nobody wants its answer any more.
    pub fn leave(&mut self, ticket: Ticket) {
        let Some(request) = self.requests.remove(&ticket) else {
            return;
        };
        let Some(flow) = self.flows.get_mut(&request.flow) else {
            return;
        };
        match request.state {
            State::Queued => {
                flow.waiting.retain(|waiting| *waiting != ticket);
                if flow.waiting.is_empty()
                    && let Some(tenant) = self.tenants.get_mut(&flow.limits.tenant)
                {
                    tenant.waiting.remove(&(flow.virtual_time, request.flow));
                }
                self.queued -= 1;
            }
            State::Starting | State::Running => {
                flow.running -= 1;
                self.unreserved -= u32::from(flow.limits.reserved.is_none());
                self.running -= 1;
                let starting = u32::from(request.state == State::Starting);
                flow.starting -= starting;
                self.starting -= starting;
                if !request.rests {
                    self.used.cpu_milli -= request.share.cpu_milli;
                }
                self.used.memory -= request.share.memory;
            }
        }
        self.drop_if_over(request.flow);
    }

    /// Takes note of what a request of this flow has taken.
    pub fn learn(&mut self, name: &str, observed: &Observed) {
        if let Some(flow) = self.names.get(name).and_then(|id| self.flows.get_mut(id)) {
            flow.estimate.learn(observed);
        }
    }

    /// Bytes that a request of a flow is expected to use.
    pub fn expected_memory(&self, name: &str) -> u64 {
        let flow = self.names.get(name).and_then(|id| self.flows.get(id));
        flow.map_or_else(Estimate::default, |flow| flow.estimate)
            .memory
    }

    /// Where a request is; `None` when it is gone.
    pub fn state(&self, ticket: Ticket) -> Option<State> {
        self.requests.get(&ticket).map(|request| request.state)
    }

    /// Requests of a flow that wait, and that run or start.
    pub fn counts(&self, name: &str) -> (usize, u32) {
        let flow = self.names.get(name).and_then(|id| self.flows.get(id));
        flow.map_or((0, 0), |flow| (flow.waiting.len(), flow.running))
    }

    /// Requests that wait, that start, and that run or start.
    pub fn totals(&self) -> (u32, u32, u32) {
        (self.queued, self.starting, self.running)
    }

    /// When its client may come again, if a request of this flow has waited in vain.
    pub fn overdue(&self, name: &str) -> Throttle {
        let flow = self.names.get(name).and_then(|id| self.flows.get(id));
        Throttle {
            limit: match flow.is_some_and(at_own_limit) {
                true => Limit::Function,
                false => Limit::Node,
            },
            retry_after_s: flow.map_or(1, retry_after),
        }
    }

    /// The tenant and the flow whose turn it is.
    fn choose(&self) -> Option<(String, usize)> {
        if !self.is_free() {
            return None;
        }
        let mut tenants: Vec<(&String, &Tenant)> = (self.tenants.iter())
            .filter(|(_, tenant)| !tenant.waiting.is_empty())
            .collect();
        tenants.sort_by_key(|(name, tenant)| (tenant.virtual_time, *name));
        for (name, tenant) in tenants {
            for (_, id) in &tenant.waiting {
                match self.held(self.flows.get(id)?) {
                    None => return Some((name.clone(), *id)),
                    Some(Held::Itself) => {}
                    Some(Held::Everybody) => return None,
                }
            }
        }
        None
    }

    /// Is there room for any request at all?
    fn is_free(&self) -> bool {
        self.running < self.capacity.running
            && (self.starting < self.capacity.starting || self.running == 0)
    }

    fn held(&self, flow: &Flow) -> Option<Held> {
        if at_own_limit(flow) {
            return Some(Held::Itself);
        }
        // The last start is for a flow that has none: it does not wait for the burst of another.
        let is_last = self.starting + 1 >= self.capacity.starting;
        if is_last && flow.starting > 0 && self.capacity.starting > 1 {
            return Some(Held::Itself);
        }
        let unreserved = self.capacity.running.saturating_sub(self.reserved);
        if flow.limits.reserved.is_none() && self.unreserved >= unreserved.max(1) {
            return Some(Held::Itself);
        }
        let estimate = &flow.estimate;
        let has_memory = self.running == 0
            || self.used.memory.saturating_add(estimate.memory) <= self.capacity.memory;
        // One that is expected to use more than there is must not wait for others of its kind that rest.
        let has_cpu = self.used.cpu_milli == 0
            || self.used.cpu_milli.saturating_add(estimate.cpu_milli) <= self.capacity.cpu_milli;
        match (has_memory, has_cpu, flow.running) {
            (true, true, _) | (true, false, 0) => None,
            (false, _, 0) => Some(Held::Everybody),
            _ => Some(Held::Itself),
        }
    }

    fn drop_if_over(&mut self, id: usize) {
        let is_over = self
            .flows
            .get(&id)
            .is_some_and(|flow| flow.is_retired && flow.running == 0 && flow.waiting.is_empty());
        if is_over && let Some(flow) = self.flows.remove(&id) {
            self.uncount(id, &flow);
        }
    }
}

/// A flow that had nothing waiting takes its place: not before the present, so that nobody saves up.
fn enter(tenant: &mut Tenant, flow: &mut Flow, id: usize, clock: u64) {
    if tenant.waiting.is_empty() {
        tenant.virtual_time = tenant.virtual_time.max(clock);
    }
    flow.virtual_time = flow.virtual_time.max(tenant.clock);
    tenant.waiting.insert((flow.virtual_time, id));
}

/// Requests of a flow that run without a reservation.
fn unreserved(flow: &Flow) -> u32 {
    match flow.limits.reserved {
        None => flow.running,
        Some(_) => 0,
    }
}

fn at_own_limit(flow: &Flow) -> bool {
    let limits = [flow.limits.reserved, flow.limits.most];
    limits.iter().flatten().any(|limit| flow.running >= *limit)
}

/// How long the requests that wait already will take, at the pace of those that run.
fn retry_after(flow: &Flow) -> u32 {
    let ahead = flow.waiting.len() as u64 + 1;
    let us = ahead.saturating_mul(flow.estimate.time_us) / u64::from(flow.running.max(1));
    u32::try_from(us.div_ceil(1_000_000).clamp(1, LONGEST_RETRY_S)).unwrap_or(1)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
