//! Things made ahead, so that a request finds them ready: sandboxes, clones of templates.

mod turns;

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use turns::Turns;

/// Makes things in the background, one after the other. Stocks take turns: one that is emptied in a burst does not keep
/// others from being filled.
#[derive(Debug, Clone)]
pub struct Filler {
    orders: Sender<Order>,
}

/// What is to be filled, and when at the earliest.
struct Order {
    stock: Weak<dyn Refill>,
    not_before: Instant,
}

/// How long after something was taken its replacement is made: whoever took it is starting an
/// instance at this moment, and should have the processor to itself.
const REST: Duration = Duration::from_millis(2);

/// Between two looks at whether stocks hold more than they should, when nothing is taken.
const REVIEW: Duration = Duration::from_secs(1);

trait Refill: Send + Sync {
    fn refill(&self);
    /// Lets go of one thing that is too many; says whether there may be another.
    fn trim(&self) -> bool;
}

/// How large a stock is: at least `floor`, at most `ceiling`, and in between as many as were lately taken at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Things that are ready however little is asked for.
    pub floor: usize,
    /// Things that are ready at most.
    pub ceiling: usize,
}

impl Size {
    /// Always the same.
    pub fn fixed(size: usize) -> Self {
        Self {
            floor: size,
            ceiling: size,
        }
    }
}

/// How many things are taken at a time. A stock is emptied by what comes faster than it is filled, so what counts is the
/// largest number within the time in which some of it is made anew.
#[derive(Debug)]
struct Demand {
    window: Instant,
    taken: usize,
    peak: f64,
}

/// The time within which takings count together.
const WINDOW: Duration = Duration::from_millis(100);
/// What is left of a peak after each further window: a half after seven seconds.
const FADE: f64 = 0.99;

impl Demand {
    fn new(now: Instant) -> Self {
        Self {
            window: now,
            taken: 0,
            peak: 0.0,
        }
    }

    fn pass(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.window).as_millis() / WINDOW.as_millis();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        if passed > 0 {
            self.peak *= FADE.powf(f64::from(passed));
            self.taken = 0;
            self.window = now;
        }
    }

    fn took(&mut self, now: Instant) {
        self.pass(now);
        self.taken += 1;
        self.peak = self.peak.max(self.taken as f64);
    }

    fn target(&mut self, now: Instant, size: Size) -> usize {
        self.pass(now);
        (self.peak.ceil() as usize).clamp(size.floor, size.ceiling.max(size.floor))
    }
}

impl Filler {
    /// Starts the background thread. It ends when the last clone of the filler is dropped.
    pub fn start() -> std::io::Result<Self> {
        let (orders, receiver): (_, Receiver<Order>) = channel();
        std::thread::Builder::new()
            .name("filler".into())
            .spawn(move || fill(&receiver))?;
        Ok(Self { orders })
    }
}

fn fill(orders: &Receiver<Order>) {
    let mut turns: Turns<Weak<dyn Refill>> = Turns::new(Weak::ptr_eq);
    let mut reviewed = Instant::now();
    loop {
        let now = Instant::now();
        let wait = match turns.next(now) {
            Some(stock) => {
                if let Some(stock) = stock.upgrade() {
                    stock.refill();
                }
                Duration::ZERO
            }
            None => turns.until_next(now).unwrap_or(REVIEW).min(REVIEW),
        };
        match orders.recv_timeout(wait) {
            Ok(order) => {
                // All that have asked meanwhile, so that each gets its turn.
                for Order { stock, not_before } in std::iter::once(order).chain(orders.try_iter()) {
                    turns.add(stock, not_before);
                }
            }
            Err(RecvTimeoutError::Timeout) if reviewed.elapsed() >= REVIEW => {
                reviewed = Instant::now();
                turns.retain(|stock| stock.strong_count() > 0);
                for stock in turns.all().filter_map(Weak::upgrade) {
                    while stock.trim() {}
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// A number of equal things, ready to be taken.
pub struct Stock<T, E> {
    state: Mutex<State<T>>,
    size: Size,
    make: Box<dyn Fn() -> Result<T, E> + Send + Sync>,
    filler: Filler,
}

/// What became of a stock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StockCounts {
    /// Things that are ready now.
    pub ready: u64,
    /// Things made in the background so far.
    pub made: u64,
    /// Things taken so far.
    pub taken: u64,
    /// Times that none was ready.
    pub missed: u64,
}

impl StockCounts {
    /// Both together.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            ready: self.ready + other.ready,
            made: self.made + other.made,
            taken: self.taken + other.taken,
            missed: self.missed + other.missed,
        }
    }
}

struct State<T> {
    ready: VecDeque<T>,
    /// Orders for refills that the filler has not carried out yet.
    ordered: usize,
    demand: Demand,
    /// All but `ready`, which follows from the above.
    counts: StockCounts,
}

impl<T, E> std::fmt::Debug for Stock<T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stock")
            .field("ready", &self.lock().ready.len())
            .field("size", &self.size)
            .finish()
    }
}

impl<T: Send + 'static, E: std::fmt::Display + 'static> Stock<T, E> {
    /// An empty stock that will be filled, beginning now.
    pub fn new(
        filler: &Filler,
        size: Size,
        make: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let state = Mutex::new(State {
            ready: VecDeque::new(),
            ordered: 0,
            demand: Demand::new(Instant::now()),
            counts: StockCounts::default(),
        });
        let stock = Arc::new(Self {
            state,
            size,
            make: Box::new(make),
            filler: filler.clone(),
        });
        stock.order(Instant::now());
        stock
    }

    /// Takes one if one is ready, and has it replaced.
    pub fn take(self: &Arc<Self>) -> Option<T> {
        let now = Instant::now();
        let taken = {
            let mut state = self.lock();
            state.demand.took(now);
            let taken = state.ready.pop_front();
            match taken {
                Some(_) => state.counts.taken += 1,
                None => state.counts.missed += 1,
            }
            taken
        };
        self.order(now + REST);
        taken
    }

    /// Makes one at once, in the calling thread.
    pub fn make(&self) -> Result<T, E> {
        (self.make)()
    }

    fn order(self: &Arc<Self>, not_before: Instant) {
        let mut state = self.lock();
        let target = state.demand.target(Instant::now(), self.size);
        while state.ready.len() + state.ordered < target {
            let stock: Weak<Self> = Arc::downgrade(self);
            if self
                .filler
                .orders
                .send(Order { stock, not_before })
                .is_err()
            {
                return;
            }
            state.ordered += 1;
        }
    }
}

impl<T, E> Stock<T, E> {
    /// What became of it until now.
    pub fn counts(&self) -> StockCounts {
        let state = self.lock();
        StockCounts {
            ready: state.ready.len() as u64,
            ..state.counts
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send, E: std::fmt::Display> Refill for Stock<T, E> {
    fn refill(&self) {
        let made = (self.make)();
        let mut state = self.lock();
        state.ordered -= 1;
        match made {
            Ok(thing) => {
                state.counts.made += 1;
                state.ready.push_back(thing);
            }
            // Whoever takes next finds none, makes one itself, and reports its own error.
            Err(error) => tracing::warn!(%error, "a thing for the stock could not be made"),
        }
    }

    fn trim(&self) -> bool {
        let surplus = {
            let mut state = self.lock();
            let target = state.demand.target(Instant::now(), self.size);
            match state.ready.len() > target {
                true => state.ready.pop_front(),
                false => None,
            }
        };
        surplus.is_some()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_stock_fills_up_to_its_target_and_replaces_what_is_taken() {
        let filler = Filler::start().unwrap();
        let (made, seen) = channel();
        let stock = Stock::new(&filler, Size::fixed(3), move || {
            made.send(()).map_err(|_| "closed")?;
            Ok::<_, &str>(())
        });
        for _ in 0..3 {
            seen.recv().unwrap();
        }
        while stock.take().is_none() {
            std::thread::yield_now();
        }
        seen.recv().unwrap();
        drop(stock);
    }

    #[test]
    fn a_stock_follows_the_bursts_and_forgets_them() {
        let (start, size) = (
            Instant::now(),
            Size {
                floor: 4,
                ceiling: 20,
            },
        );
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut demand = Demand::new(start);
        assert_eq!(demand.target(at(0), size), 4);
        // One at a time is no burst, however long it goes on.
        for ms in (0..5000).step_by(250) {
            demand.took(at(ms));
        }
        assert_eq!(demand.target(at(5000), size), 4);
        for _ in 0..12 {
            demand.took(at(5010));
        }
        assert_eq!(demand.target(at(5020), size), 12);
        assert!((6..12).contains(&demand.target(at(10_000), size)));
        assert_eq!(demand.target(at(60_000), size), 4);
        for _ in 0..100 {
            demand.took(at(60_000));
        }
        assert_eq!(demand.target(at(60_010), size), 20);
        assert_eq!(demand.target(at(60_010), Size::fixed(3)), 3);
    }

    #[test]
    fn what_is_too_many_is_let_go_of() {
        let filler = Filler::start().unwrap();
        let stock = Stock::new(&filler, Size::fixed(2), || Ok::<_, &str>(()));
        while stock.lock().ready.len() < 2 {
            std::thread::yield_now();
        }
        stock.lock().ready.push_back(());
        assert!(stock.trim());
        assert!(!stock.trim());
    }
}
