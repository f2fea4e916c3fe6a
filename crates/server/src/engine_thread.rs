//! The thread that computes. It alone has the engine; everybody else hands in jobs and hears of them
//! through channels. Between two forward passes it takes new jobs, as many as the engine runs at once, and
//! drops those that nobody waits for any more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::{Constraint, Event, GenerateOptions, Request, RequestId, Scheduler, Step};
use tokio::sync::{mpsc, watch};

use crate::error::{ApiError, Code, chain};
use crate::facts::Facts;
use crate::log;
use crate::picture;
use crate::queue::{FairQueue, Place};

/// How long the engine reads hot experts at a time while it has nothing to do.
const WARM_UP_TURN: Duration = Duration::from_millis(20);
/// How often an idle thread looks around although nobody has woken it.
const IDLE_TURN: Duration = Duration::from_millis(500);
/// The least time between two pictures for those who watch.
const PICTURE_INTERVAL: Duration = Duration::from_millis(100);

/// Whose turn it is: jobs of one client wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    /// The number of its key.
    pub(crate) key: usize,
    /// Where it is.
    pub(crate) address: IpAddr,
}

/// A generation to run.
pub(crate) struct Job {
    pub(crate) prompt: Vec<u32>,
    pub(crate) options: GenerateOptions,
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    pub(crate) deadline: Instant,
    /// Who hears of it. When the other end is gone, the job ends. What waits there is bounded by the
    /// tokens of a context.
    pub(crate) listener: mpsc::UnboundedSender<Heard>,
}

/// What a job's owner hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Its turn has come.
    Begun,
    /// So many of its prompt's tokens are read, and so many of them were known from before.
    Progress { done: usize, total: usize, cached: usize },
    /// A token.
    Step(Box<Step>),
    /// It has ended without an answer, or without the rest of one.
    Failed(ApiError),
}

/// How the server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing new is taken; what was taken goes on.
    Draining,
    /// Everything ends now.
    Ending,
}

struct Waiting {
    queue: FairQueue<Client, Job>,
    phase: Phase,
}

/// What the thread and everybody else have in common.
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    facts: Mutex<Facts>,
    is_alive: AtomicBool,
    watchers: AtomicUsize,
    pictures: watch::Sender<Arc<str>>,
}

/// The way to the thread.
#[derive(Clone)]
pub(crate) struct EngineHandle {
    shared: Arc<Shared>,
}

/// Somebody who watches the engine; pictures are drawn while there is one.
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    pub(crate) pictures: watch::Receiver<Arc<str>>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl EngineHandle {
    /// Starts the thread.
    pub(crate) fn start(
        scheduler: Scheduler,
        queue: usize,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let waiting = Waiting { queue: FairQueue::new(queue), phase: Phase::Open };
        let shared = Arc::new(Shared {
            waiting: Mutex::new(waiting),
            wake: Condvar::new(),
            facts: Mutex::default(),
            is_alive: AtomicBool::new(true),
            watchers: AtomicUsize::new(0),
            pictures: watch::Sender::new(Arc::from("{}")),
        });
        let worker = Worker {
            scheduler,
            shared: Arc::clone(&shared),
            running: HashMap::new(),
            drawn: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("engine".to_owned());
        let thread = thread.spawn(move || worker.work())?;
        Ok((Self { shared }, thread))
    }

    /// Keeps a place in the queue, before work is done for a request.
    pub(crate) fn reserve(&self, client: Client) -> Result<Reservation, ApiError> {
        let mut reservation = Reservation { shared: Arc::clone(&self.shared), client, place: None };
        reservation.widen(1)?;
        Ok(reservation)
    }

    /// Hands in the jobs of one request: all of them, or none when their place was lost.
    pub(crate) fn submit(
        &self,
        mut reservation: Reservation,
        jobs: Vec<Job>,
    ) -> Result<(), ApiError> {
        let mut waiting = lock(&self.shared.waiting);
        let is_held = reservation.place.take().is_some_and(|place| waiting.queue.give_up(place));
        check_open(&waiting)?;
        if !is_held {
            return Err(full(&waiting));
        }
        for job in jobs {
            waiting.queue.push(reservation.client, job);
        }
        drop(waiting);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Whether the thread runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.shared.is_alive.load(Ordering::Acquire)
    }

    /// Waits until the thread has ended.
    pub(crate) async fn gone(&self) {
        let mut pictures = self.shared.pictures.subscribe();
        // It says so with a last picture.
        while self.is_alive() && pictures.changed().await.is_ok() {}
    }

    /// What the engine did so far.
    pub(crate) fn facts(&self) -> Facts {
        let waiting = lock(&self.shared.waiting).queue.len();
        Facts { waiting, ..lock(&self.shared.facts).clone() }
    }

    /// Begins to watch.
    pub(crate) fn watch(&self) -> Watcher {
        self.shared.watchers.fetch_add(1, Ordering::Relaxed);
        self.shared.wake.notify_one();
        Watcher { shared: Arc::clone(&self.shared), pictures: self.shared.pictures.subscribe() }
    }

    /// Takes nothing new any more.
    pub(crate) fn drain(&self) {
        self.set_phase(Phase::Draining);
    }

    /// Ends everything that still runs.
    pub(crate) fn end(&self) {
        self.set_phase(Phase::Ending);
    }

    fn set_phase(&self, phase: Phase) {
        lock(&self.shared.waiting).phase = phase;
        self.shared.wake.notify_one();
    }
}

/// A place in the queue for a request that is being read or prepared. Dropping it gives it up.
pub(crate) struct Reservation {
    shared: Arc<Shared>,
    client: Client,
    place: Option<Place>,
}

impl Reservation {
    /// Whose it is.
    pub(crate) fn client(&self) -> Client {
        self.client
    }

    /// Makes it a place for so many jobs, if it was not lost meanwhile.
    pub(crate) fn widen(&mut self, n_jobs: usize) -> Result<(), ApiError> {
        let mut waiting = lock(&self.shared.waiting);
        check_open(&waiting)?;
        if self.place.take().is_some_and(|place| !waiting.queue.give_up(place)) {
            return Err(full(&waiting));
        }
        let Some((place, evicted)) = waiting.queue.reserve(self.client, n_jobs) else {
            return Err(full(&waiting));
        };
        self.place = Some(place);
        for job in evicted {
            tell(&job.listener, Heard::Failed(full(&waiting)));
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            lock(&self.shared.waiting).queue.give_up(place);
        }
    }
}

fn check_open(waiting: &Waiting) -> Result<(), ApiError> {
    if waiting.phase == Phase::Open {
        return Ok(());
    }
    Err(ApiError::new(Code::ShuttingDown, "the server is shutting down"))
}

fn full(waiting: &Waiting) -> ApiError {
    let limit = waiting.queue.limit();
    ApiError::new(Code::QueueFull, format!("{limit} requests wait already; try again later"))
}

/// A job that the engine runs.
struct Running {
    deadline: Instant,
    listener: mpsc::UnboundedSender<Heard>,
}

/// The thread's own.
struct Worker {
    scheduler: Scheduler,
    shared: Arc<Shared>,
    running: HashMap<RequestId, Running>,
    drawn: Instant,
}

/// Tells that the thread is gone, also when it was a panic that ended it.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.is_alive.store(false, Ordering::Release);
        // Whoever waits hears that nobody will answer.
        let mut waiting = lock(&self.0.waiting);
        waiting.phase = Phase::Ending;
        waiting.queue.retain(|_| false);
        self.0.pictures.send_modify(|_| {});
    }
}

impl Worker {
    fn work(mut self) {
        let _alive = Alive(Arc::clone(&self.shared));
        let mut is_warm = false;
        loop {
            let (jobs, phase) = self.next_jobs();
            if phase == Phase::Ending {
                self.end_all();
                break;
            }
            if !jobs.is_empty() {
                for job in jobs {
                    self.begin(job);
                }
                // Who hears of a first token finds it counted as running.
                self.publish();
            }
            if self.running.is_empty() {
                if phase == Phase::Draining && lock(&self.shared.waiting).queue.len() == 0 {
                    break;
                }
                is_warm = is_warm || self.scheduler.engine_mut().warm_up(WARM_UP_TURN);
                self.publish();
                if is_warm {
                    self.rest();
                }
                continue;
            }
            is_warm = false;
            self.drop_unwanted();
            self.step();
            self.publish();
        }
        if let Err(error) = self.scheduler.engine_mut().save_heat_map() {
            log::line(&format!("warning: {error}"));
        }
    }

    /// Jobs whose turn has come, after those have left the queue that nobody waits for.
    fn next_jobs(&mut self) -> (Vec<Job>, Phase) {
        let mut waiting = lock(&self.shared.waiting);
        let now = Instant::now();
        waiting.queue.retain(|job| {
            if job.deadline <= now {
                tell(&job.listener, Heard::Failed(too_late()));
            }
            job.deadline > now && !job.listener.is_closed()
        });
        let free = self.scheduler.capacity().saturating_sub(self.running.len());
        let jobs = std::iter::from_fn(|| waiting.queue.pop()).take(free).collect();
        (jobs, waiting.phase)
    }

    /// Gives a job to the engine.
    fn begin(&mut self, job: Job) {
        let Job { prompt, options, constraint, deadline, listener } = job;
        tell(&listener, Heard::Begun);
        match self.scheduler.start(Request { prompt, options, constraint }) {
            Ok(id) => {
                self.running.insert(id, Running { deadline, listener });
            }
            Err(error) => tell(&listener, Heard::Failed(error.into())),
        }
    }

    /// Ends what nobody waits for, and what is too late.
    fn drop_unwanted(&mut self) {
        let Self { running, scheduler, .. } = self;
        let now = Instant::now();
        running.retain(|&id, job| {
            let is_late = job.deadline <= now;
            if is_late {
                tell(&job.listener, Heard::Failed(too_late()));
            }
            let is_wanted = !is_late && !job.listener.is_closed();
            if !is_wanted {
                scheduler.cancel(id);
            }
            is_wanted
        });
    }

    /// One forward pass.
    fn step(&mut self) {
        let Self { running, scheduler, .. } = self;
        scheduler.step(&mut |id, event| {
            let heard = match event {
                Ok(Event::Progress { done, total, cached }) => {
                    Heard::Progress { done, total, cached }
                }
                Ok(Event::Step(step)) => Heard::Step(Box::new(step)),
                Err(error) => {
                    log::line(&format!("error: a request failed: {}", chain(&error)));
                    Heard::Failed(error.into())
                }
            };
            let is_last = match &heard {
                Heard::Step(step) => step.finish.is_some(),
                Heard::Failed(_) => true,
                Heard::Begun | Heard::Progress { .. } => false,
            };
            if let Some(job) = running.get(&id) {
                tell(&job.listener, heard);
            }
            if is_last {
                running.remove(&id);
            }
        });
    }

    fn end_all(&mut self) {
        let error = || ApiError::new(Code::ShuttingDown, "the server is shutting down");
        for (id, job) in self.running.drain() {
            self.scheduler.cancel(id);
            tell(&job.listener, Heard::Failed(error()));
        }
        while let Some(job) = lock(&self.shared.waiting).queue.pop() {
            tell(&job.listener, Heard::Failed(error()));
        }
    }

    /// Waits until somebody comes; those who watch see soon that nothing is done.
    fn rest(&self) {
        let is_watched = self.shared.watchers.load(Ordering::Relaxed) > 0;
        let turn = if is_watched { PICTURE_INTERVAL } else { IDLE_TURN };
        let waiting = lock(&self.shared.waiting);
        let is_idle =
            |waiting: &mut Waiting| waiting.queue.len() == 0 && waiting.phase == Phase::Open;
        drop(self.shared.wake.wait_timeout_while(waiting, turn, is_idle));
    }

    /// Tells what was done, and those who watch how the engine looks.
    fn publish(&mut self) {
        let facts = Facts::of(&self.scheduler);
        *lock(&self.shared.facts) = facts.clone();
        let is_watched = self.shared.watchers.load(Ordering::Relaxed) > 0;
        if is_watched && self.drawn.elapsed() >= PICTURE_INTERVAL {
            self.drawn = Instant::now();
            let waiting = lock(&self.shared.waiting).queue.len();
            let facts = Facts { waiting, ..facts };
            let picture = picture::draw(&facts, self.scheduler.engine());
            self.shared.pictures.send_replace(Arc::from(picture));
        }
    }
}

pub(crate) fn too_late() -> ApiError {
    ApiError::new(Code::DeadlineExceeded, "the request took longer than the server allows")
}

/// Tells the owner of a job; one that is gone is noticed before the next pass.
fn tell(listener: &mpsc::UnboundedSender<Heard>, heard: Heard) {
    drop(listener.send(heard));
}

/// What a panic elsewhere has left is still sound: every change under these locks is a whole one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
