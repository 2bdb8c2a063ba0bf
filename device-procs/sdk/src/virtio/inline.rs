//! Posts on the caller's thread: for tests, benches and fuzzers.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::engine::{Engine, OneByOne, Queues, Serve, Wait, Work};
use super::inflight::{Pages, Region};
use super::interrupt::Interrupt;
use super::queue::Virtqueue;
use super::threads::Kicker;
use crate::host::Traffic;

/// Turns in a row that a post gets at most: one that always has more to do comes to an end nevertheless.
const TURNS: usize = 100_000;

/// Gives each post its turns at once, until it waits.
#[derive(Debug)]
pub struct Inline<W> {
    posts: Vec<Post<W>>,
    interrupt: Interrupt,
    pages: Option<Pages>,
    parked: bool,
}

#[derive(Debug)]
struct Post<W> {
    work: W,
    /// Its queues' numbers.
    numbers: Vec<u16>,
    queues: Queues,
    wait: Wait,
}

impl<W: Work> Inline<W> {
    /// Posts, each with the numbers of its queues.
    pub fn new(posts: Vec<(W, Vec<u16>)>, interrupt: Interrupt) -> Self {
        let post = |(work, numbers): (W, Vec<u16>)| {
            let stops = numbers.iter().map(|number| (*number, Arc::new(AtomicBool::new(false))));
            let queues = Queues::new(stops, interrupt.clone());
            Post { work, numbers, queues, wait: Wait::default() }
        };
        Inline { posts: posts.into_iter().map(post).collect(), interrupt, pages: None, parked: false }
    }

    /// Records requests in flight in `pages`.
    #[must_use]
    pub fn with_pages(mut self, pages: Pages) -> Self {
        self.pages = Some(pages);
        self
    }

    /// Gives every post its turns: a source is ready, the time has come, or for nothing.
    pub fn poll(&mut self) {
        (0..self.posts.len()).for_each(|post| self.turns(post));
    }

    /// What post `post` waits for.
    pub fn wait(&self, post: usize) -> Wait {
        self.posts.get(post).map(|post| post.wait).unwrap_or_default()
    }

    /// What post `post` passed.
    pub fn traffic(&self, post: usize) -> Arc<Traffic> {
        self.posts.get(post).map_or_else(Arc::default, |post| post.queues.traffic())
    }

    /// What post `post` does.
    pub fn work(&mut self, post: usize) -> Option<&mut W> {
        self.posts.get_mut(post).map(|post| &mut post.work)
    }

    /// Kicks nobody: here the caller polls, and after an event all posts have their turns.
    pub fn kicker(&self, _post: usize) -> Kicker {
        Kicker::none()
    }

    /// The post and the slot of queue `index`.
    fn place(&self, index: usize) -> Option<(usize, usize)> {
        let slot = |post: &Post<W>| post.numbers.iter().position(|number| usize::from(*number) == index);
        self.posts.iter().enumerate().find_map(|(number, post)| Some((number, slot(post)?)))
    }

    fn turns(&mut self, post: usize) {
        let Some(post) = self.posts.get_mut(post).filter(|_| !self.parked) else { return };
        for _ in 0..TURNS {
            if !post.queues.any() {
                post.wait = Wait::default();
                return;
            }
            match post.work.work(&mut post.queues) {
                Ok(wait) => post.wait = wait,
                Err(error) => {
                    (0..post.numbers.len()).for_each(|slot| post.take_away(slot));
                    self.interrupt.broken(&post.numbers, &error);
                    return;
                }
            }
            if !post.wait.again {
                return;
            }
        }
    }
}

impl<S: Serve> Inline<OneByOne<S>> {
    /// A post for each of `servers`, which serve queues 0 and up.
    pub fn servers(servers: Vec<S>, interrupt: Interrupt) -> Self {
        let posts = servers.into_iter().zip(0..).map(|(server, number)| (OneByOne(server), vec![number]));
        Self::new(posts.collect(), interrupt)
    }
}

impl<W: Work> Post<W> {
    fn take_away(&mut self, slot: usize) {
        if self.queues.take(slot).is_some() {
            self.work.end(slot);
        }
    }
}

impl<W: Work> Engine for Inline<W> {
    fn start(&mut self, index: usize, queue: Virtqueue, features: u64) {
        let Some((number, slot)) = self.place(index) else { return };
        if let Some(post) = self.posts.get_mut(number) {
            post.work.begin(slot, features);
            post.queues.put(slot, queue);
        }
        self.turns(number);
    }

    fn kick(&mut self, index: usize) {
        if let Some((number, _)) = self.place(index) {
            self.turns(number);
        }
    }

    fn stop(&mut self, index: usize) {
        let Some((number, slot)) = self.place(index) else { return };
        if let Some(post) = self.posts.get_mut(number) {
            post.take_away(slot);
        }
    }

    fn busy(&self, _index: usize) -> bool {
        false
    }

    fn settle(&self, _index: usize, _limit: Duration) -> bool {
        true
    }

    fn park(&mut self, park: bool) {
        self.parked = park;
        self.poll();
    }

    fn is_parked(&self) -> bool {
        self.parked
    }

    fn nudge(&mut self) {
        self.poll();
    }

    fn record(&self, index: usize) -> Option<Region> {
        self.pages.as_ref()?.region(index)
    }
}
