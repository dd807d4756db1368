//! Who is served next.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Some that have asked for things, each for one or several. They are served in turns.
#[derive(Debug)]
pub struct Turns<T> {
    /// Who was served longest ago is first.
    askers: VecDeque<Asker<T>>,
    same: fn(&T, &T) -> bool,
}

#[derive(Debug)]
struct Asker<T> {
    who: T,
    /// When each thing that it has asked for may be made, in the order of asking.
    asked: VecDeque<Instant>,
}

impl<T> Turns<T> {
    /// Nobody yet. `same` tells whether two are the same.
    pub fn new(same: fn(&T, &T) -> bool) -> Self {
        Self {
            askers: VecDeque::new(),
            same,
        }
    }

    /// Somebody asks for a thing more, which is not to be made before a time.
    pub fn add(&mut self, who: T, not_before: Instant) {
        let same = self.same;
        match self.askers.iter_mut().find(|asker| same(&asker.who, &who)) {
            Some(asker) => asker.asked.push_back(not_before),
            // It has never been served.
            None => self.askers.push_front(Asker {
                who,
                asked: VecDeque::from([not_before]),
            }),
        }
    }

    /// Of those whose time has come, the one that was served longest ago. It goes to the end of the line.
    pub fn next(&mut self, now: Instant) -> Option<&T> {
        let is_due = |asker: &Asker<T>| asker.asked.front().is_some_and(|time| *time <= now);
        let at = self.askers.iter().position(is_due)?;
        let mut asker = self.askers.remove(at)?;
        asker.asked.pop_front();
        self.askers.push_back(asker);
        self.askers.back().map(|asker| &asker.who)
    }

    /// How long nobody's time comes, if anybody has asked for something.
    pub fn until_next(&self, now: Instant) -> Option<Duration> {
        let times = self.askers.iter().filter_map(|asker| asker.asked.front());
        times.min().map(|time| time.saturating_duration_since(now))
    }

    /// All that have ever asked.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.askers.iter().map(|asker| &asker.who)
    }

    /// Forgets those of whom `keep` says no.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.askers.retain(|asker| keep(&asker.who));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns() -> Turns<char> {
        Turns::new(char::eq)
    }

    #[test]
    fn who_asks_for_much_waits_for_who_asks_for_little() {
        let now = Instant::now();
        let mut turns = turns();
        for _ in 0..3 {
            turns.add('a', now);
        }
        turns.add('b', now);
        let mut order = String::new();
        while let Some(who) = turns.next(now) {
            order.push(*who);
        }
        assert_eq!(order, "baaa");
        // Both were served before; 'b' longer ago.
        turns.add('a', now);
        turns.add('a', now);
        turns.add('b', now);
        order.clear();
        while let Some(who) = turns.next(now) {
            order.push(*who);
        }
        assert_eq!(order, "baa");
    }

    #[test]
    fn nobody_is_served_before_the_time() {
        let now = Instant::now();
        let later = now + Duration::from_millis(5);
        let mut turns = turns();
        assert_eq!(turns.until_next(now), None);
        turns.add('a', later);
        assert_eq!(turns.next(now), None);
        assert_eq!(turns.until_next(now), Some(Duration::from_millis(5)));
        turns.add('b', now);
        assert_eq!(turns.next(now), Some(&'b'));
        assert_eq!(turns.next(later), Some(&'a'));
        assert_eq!(turns.until_next(later), None);
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let now = Instant::now();
        let mut turns = turns();
        turns.add('a', now);
        turns.add('b', now);
        turns.retain(|who| *who != 'a');
        assert_eq!(turns.all().collect::<String>(), "b");
    }
}
