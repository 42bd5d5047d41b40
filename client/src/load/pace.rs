//! `Pace`: waiting for a moment, as exactly as the machine can.

use tokio::time::{Instant, sleep_until};

/// Waits for moments. Tokio's own timers are a millisecond coarse, which is more than many a request takes: where the operating system has a
/// finer one, it is used.
#[derive(Debug)]
pub(crate) enum Pace {
    Coarse,
    #[cfg(target_os = "linux")]
    Fine(tokio::io::unix::AsyncFd<rustix::fd::OwnedFd>),
}

impl Pace {
    /// The finest there is.
    pub(crate) fn finest() -> Self {
        #[cfg(target_os = "linux")]
        match fine() {
            Ok(timer) => return Self::Fine(timer),
            Err(error) => tracing::debug!(%error, "no fine timer"),
        }
        Self::Coarse
    }

    pub(crate) async fn wait_until(&mut self, moment: Instant) {
        #[cfg(target_os = "linux")]
        if let Self::Fine(timer) = self {
            match expire(timer, moment).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(%error, "the fine timer failed");
                    *self = Self::Coarse;
                }
            }
        }
        sleep_until(moment).await;
    }
}

#[cfg(target_os = "linux")]
#[expect(
    deprecated,
    reason = "the replacement does the same as an unsafe function, which an owned descriptor does not need"
)]
fn fine() -> std::io::Result<tokio::io::unix::AsyncFd<rustix::fd::OwnedFd>> {
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    tokio::io::unix::AsyncFd::with_interest(timer, tokio::io::Interest::READABLE)
}

#[cfg(target_os = "linux")]
async fn expire(timer: &tokio::io::unix::AsyncFd<rustix::fd::OwnedFd>, moment: Instant) -> std::io::Result<()> {
    use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
    let left = moment.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(());
    }
    let it_value =
        Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
    let once = Itimerspec { it_interval: Timespec::default(), it_value };
    timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
    loop {
        let mut ready = timer.readable().await?;
        let mut expirations = [0; 8];
        match rustix::io::read(timer.get_ref(), &mut expirations) {
            Ok(_) => {
                ready.clear_ready();
                return Ok(());
            }
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
