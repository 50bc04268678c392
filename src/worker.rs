//! A thread with a runtime of its own, whose tasks never leave it.

use std::{future::Future, io, thread};

/// Starts a thread that runs `main` to its end. Tasks that it spawns with `spawn_local` need not be `Send`, so what a
/// worker's requests share needs no lock.
pub fn spawn<M, F>(name: &str, main: M) -> io::Result<thread::JoinHandle<()>>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    // Made here, so that the one who starts the thread gets the error.
    let (report, made) = std::sync::mpsc::sync_channel(1);
    let thread = thread::Builder::new().name(name.into()).spawn(move || {
        match tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default()) {
            Ok(runtime) => {
                let _ = report.send(Ok(()));
                runtime.block_on(main());
            }
            Err(error) => {
                let _ = report.send(Err(error));
            }
        }
    })?;
    made.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended before it began")))?;
    Ok(thread)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    #[test]
    fn tasks_of_a_worker_may_share_what_no_other_thread_sees() {
        let (send, receive) = std::sync::mpsc::channel();
        let worker = super::spawn("test", move || async move {
            let shared = Rc::new(7);
            let task = tokio::task::spawn_local({
                let shared = shared.clone();
                async move { *shared }
            });
            let _ = send.send(task.await.unwrap());
        });
        assert_eq!(receive.recv(), Ok(7));
        worker.unwrap().join().unwrap();
    }
}
