//! HTTP over the engine: the APIs of OpenAI, Anthropic and Ollama, and a page to talk and to watch.
//!
//! An API's module only translates: its requests to the one `ask::Ask`, and the one stream of
//! `reply::Delta` to its answers. A thread of its own has the engine (`engine_thread`).
//! `docs/server.md` is the reference of what each API takes and refuses.

#![forbid(unsafe_code)]

mod api;
mod app;
mod ask;
mod connections;
mod engine_thread;
mod error;
mod facts;
mod fields;
mod guard;
mod log;
mod metrics;
mod options;
mod page;
mod picture;
mod queue;
mod reply;
mod router;
mod said;
mod security;
mod stream;
mod thinking;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use chat::ChatModel;
use engine::Scheduler;
use tokio::net::TcpListener;

pub use options::{Error, ServerOptions};

use crate::app::App;
use crate::engine_thread::EngineHandle;

/// Threads that make prompts: they compete with the engine for the cores.
const PROMPT_THREADS: usize = 4;
/// How long clients have, after the time for answers, to take what was written. One that reads nothing, or
/// never ends its request, would else keep the server for ever.
const CLOSING: Duration = Duration::from_secs(1);

/// A server that has its address and does not answer yet.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
    thread: JoinHandle<()>,
    runtime: tokio::runtime::Runtime,
}

impl Server {
    /// Takes the address and gives the engine its thread.
    pub fn bind(
        scheduler: Scheduler,
        chat: Option<ChatModel>,
        options: ServerOptions,
    ) -> Result<Self, Error> {
        options.check()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(PROMPT_THREADS)
            .thread_name("server")
            .enable_io()
            .enable_time()
            .build()?;
        let asked = options.address;
        let listen = |source| Error::Listen { address: asked, source };
        let listener = runtime.block_on(TcpListener::bind(asked)).map_err(listen)?;
        let address = listener.local_addr()?;
        let queue = options.queue;
        let with_engine = App::new(scheduler.engine(), chat, options)?;
        let (engine, thread) = EngineHandle::start(scheduler, queue)?;
        let app = Arc::new(with_engine(engine));
        Ok(Self { app, listener, address, thread, runtime })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` is done; then lets answers under way end, for as long as the options allow.
    pub fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
        let Self { app, listener, thread, runtime, .. } = self;
        let router = router::router(Arc::clone(&app));
        let engine = app.engine.clone();
        runtime.block_on(async move {
            let closing = Arc::clone(&app);
            let shutdown = async move {
                tokio::select! { () = stop => {} () = closing.engine.gone() => {} }
                closing.closing.send_replace(true);
                closing.engine.drain();
                tokio::spawn(async move {
                    tokio::time::sleep(closing.options.grace).await;
                    closing.engine.end();
                });
            };
            let mut closing = app.closing.subscribe();
            let late = async {
                drop(closing.wait_for(|closing| *closing).await);
                tokio::time::sleep(app.options.grace.saturating_add(CLOSING)).await;
            };
            let serve = connections::serve(listener, router, app.options.head_time, shutdown);
            tokio::select! { () = serve => {} () = late => {} }
        });
        engine.end();
        // Connections that are still open end with it, and nobody waits for prompts that are being made.
        runtime.shutdown_background();
        // It ends by itself only in a panic, which has said what it was.
        let ended = thread.join();
        ended.map_err(|_| Error::EngineGone)
    }

    /// Answers until the process is told to end, by an interrupt or a request to terminate.
    pub fn run_until_signal(self) -> Result<(), Error> {
        self.run(signal())
    }
}

/// Waits for the system to end the process. The second time it asks, the process ends at once.
async fn signal() {
    one_signal().await;
    tokio::spawn(async {
        one_signal().await;
        std::process::exit(130);
    });
}

async fn one_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! { _ = terminate.recv() => {} _ = tokio::signal::ctrl_c() => {} }
            return;
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        // Without signals the process ends as the system has it.
        std::future::pending::<()>().await;
    }
}
