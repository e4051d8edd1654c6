//! A worker's ring and the tasks on it.

use std::{cell::Cell, fmt, io, panic, thread};

/// Submissions that fit before the kernel must be called: a burst of connections, each with a few operations.
const ENTRIES: u32 = 512;
/// Completions that fit before the kernel must keep them elsewhere.
const COMPLETIONS: u32 = 8192;

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// What a ring is made with: every kernel since 5.11 has one that does the same, later ones do it with less. `DEFER_TASKRUN` (6.1) is not
/// among them, it would hang: tokio-uring waits for the ring's descriptor with epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Completions come when the thread enters the kernel anyway (`COOP_TASKRUN`), and only this thread submits (`SINGLE_ISSUER`, 6.0):
    /// measured to cost a tenth less of a request.
    SingleIssuer,
    /// The first alone: Linux 5.19.
    Cooperative,
    /// Neither.
    Plain,
}

impl Form {
    /// The best first.
    const ALL: [Self; 3] = [Self::SingleIssuer, Self::Cooperative, Self::Plain];

    fn builder(self) -> tokio_uring::Builder {
        let mut ring = tokio_uring::uring_builder();
        match self {
            Self::SingleIssuer => drop(ring.setup_coop_taskrun().setup_single_issuer()),
            Self::Cooperative => drop(ring.setup_coop_taskrun()),
            Self::Plain => {}
        }
        ring.setup_cqsize(COMPLETIONS);
        let mut builder = tokio_uring::builder();
        builder.entries(ENTRIES).uring_builder(&ring);
        builder
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SingleIssuer => "with cooperative task running and a single issuer",
            Self::Cooperative => "with cooperative task running, without a single issuer (Linux 6.0)",
            Self::Plain => "without cooperative task running (Linux 5.19) and a single issuer (6.0)",
        })
    }
}

/// The best form of ring that the running kernel makes.
///
/// # Errors
///
/// When it makes none: io_uring is switched off, or there is no memory.
pub fn form() -> io::Result<Form> {
    // On a thread of its own: some 16 ms after a ring is closed the kernel interrupts the thread that made it, and a program that is being verified on
    // it is refused (EAGAIN). So aya's look at what the kernel can do went wrong, and nothing was loaded.
    thread::scope(|scope| scope.spawn(|| runtime().map(|(form, _)| form)).join())
        .unwrap_or_else(|panicked| panic::resume_unwind(panicked))
}

/// Runs a future, and what it spawns, on a ring of this thread until it is done.
pub fn run<F: Future>(future: F) -> io::Result<F::Output> {
    let (_, runtime) = runtime()?;
    let running = Running::begin();
    let output = runtime.block_on(future);
    drop(running);
    Ok(output)
}

fn runtime() -> io::Result<(Form, tokio_uring::Runtime)> {
    best(|form| tokio_uring::Runtime::new(&form.builder()))
}

/// The first form that is not refused as unknown: a kernel answers a flag that it does not know with `EINVAL`.
fn best<T>(make: impl Fn(Form) -> io::Result<T>) -> io::Result<(Form, T)> {
    let mut refused = io::ErrorKind::Unsupported.into();
    for form in Form::ALL {
        match make(form) {
            Ok(made) => return Ok((form, made)),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

/// Runs a future beside the others of this thread's ring.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    drop(tokio_uring::spawn(future));
}

/// Whether operations can be submitted on this thread.
pub(super) fn is_running() -> bool {
    RUNNING.get()
}

struct Running;

impl Running {
    fn begin() -> Self {
        RUNNING.set(true);
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that knows so many of the flags.
    fn kernel(forms: usize) -> impl Fn(Form) -> io::Result<Form> {
        move |form| match Form::ALL[3 - forms..].contains(&form) {
            true => Ok(form),
            false => Err(io::Error::from_raw_os_error(22)),
        }
    }

    #[test]
    fn an_older_kernel_gets_the_ring_that_it_knows() {
        for (forms, best_known) in [(3, Form::SingleIssuer), (2, Form::Cooperative), (1, Form::Plain)] {
            assert_eq!(best(kernel(forms)).unwrap(), (best_known, best_known));
        }
        assert_eq!(best(kernel(0)).unwrap_err().raw_os_error(), Some(22));
    }

    #[test]
    fn who_asks_for_the_form_is_not_interrupted_when_the_ring_is_gone() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        silent.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        form().unwrap();
        assert_eq!(silent.recv(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_ring_that_is_forbidden_is_not_tried_in_another_form() {
        let tried = Cell::new(0);
        let forbidden = best(|_| -> io::Result<()> {
            tried.set(tried.get() + 1);
            Err(io::ErrorKind::PermissionDenied.into())
        });
        assert_eq!((forbidden.unwrap_err().kind(), tried.get()), (io::ErrorKind::PermissionDenied, 1));
    }

    #[test]
    fn every_form_that_this_kernel_makes_runs_tasks_and_waits_for_sockets() {
        let begin = |form: Form| tokio_uring::Runtime::new(&form.builder());
        let made: Vec<Form> = Form::ALL.into_iter().filter(|form| begin(*form).is_ok()).collect();
        assert!(made.contains(&Form::Plain), "a plain ring is known to every kernel that has any");
        for form in made {
            let heard = begin(form).unwrap().block_on(async {
                let listener = tokio_uring::net::TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
                let address = listener.local_addr().unwrap();
                let said = tokio_uring::spawn(async move {
                    let stream = tokio_uring::net::TcpStream::connect(address).await.unwrap();
                    stream.write_all(b"heard".to_vec()).await.0.unwrap();
                });
                let (stream, _) = listener.accept().await.unwrap();
                said.await.unwrap();
                let (count, bytes) = stream.read(vec![0; 16]).await;
                bytes[..count.unwrap()].to_vec()
            });
            assert_eq!(heard, b"heard", "{form}");
        }
    }
}
