//! Traffic with trouble of its own making: readers that stall, peers that vanish, ports where nothing listens.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::{Stage, Truth};
use crate::clock;
use crate::relay::Match;
use crate::traffic::{End, Traffic};

/// A writer without room for so long meets a closed window, and not only a slow path.
const FULL: Duration = Duration::from_millis(300);

/// A reader that stands still for the pause, each time after both buffers are full, and then takes everything.
pub(super) fn stalled_reader(stage: &Stage, truth: &mut Truth) -> Result<()> {
    stalls(stage, &stage.traffic(), truth)
}

fn stalls(stage: &Stage, traffic: &Traffic, truth: &mut Truth) -> Result<()> {
    let mut pair = traffic.connect()?;
    truth.connections += 1;
    loop {
        let written = pair.fill(End::Client, FULL)?;
        stage.pause(stage.setup().pause);
        truth.paused += stage.setup().pause;
        let began = Instant::now();
        pair.read_out(End::Server, written)?;
        truth.transfers.push(began.elapsed());
        truth.moved(End::Client, written);
        if !stage.going() {
            return pair.close(End::Client);
        }
    }
}

/// Transfers of which the last segment is lost once.
pub(super) fn tail_loss(stage: &Stage, truth: &mut Truth) -> Result<()> {
    let mut pair = stage.traffic().connect()?;
    truth.connections += 1;
    // Without a measured RTT there is no probe, only a timeout.
    pair.ping_pong(2, 100)?;
    truth.moved(End::Client, 200);
    truth.moved(End::Server, 200);
    let size = stage.setup().size.max(1);
    let mut sent = 0;
    let is_last = Match::data().and(move |packet| {
        let Some(segment) = packet.segment.as_ref().filter(|segment| !segment.retransmission) else { return false };
        sent += u64::from(segment.payload);
        sent.is_multiple_of(size)
    });
    stage.path.forward().drop_when(is_last);
    loop {
        stage.transfer(&mut pair, End::Client, size, truth)?;
        if !stage.going() {
            return pair.close(End::Client);
        }
        stage.pause(stage.setup().pause);
        truth.paused += stage.setup().pause;
    }
}

/// Connections whose first SYN is lost, and of every fourth the first SYN-ACK too.
pub(super) fn syn_loss(stage: &Stage, truth: &mut Truth) -> Result<()> {
    stage.path.forward().drop_when(Match::syn().and(|packet| {
        // By connection and not by turns: a SYN that follows a lost SYN-ACK is to pass.
        packet.segment.as_ref().is_some_and(|segment| !segment.retransmission)
    }));
    stage.path.backward().drop_when(
        Match::syn_ack()
            .and(|packet| packet.segment.as_ref().is_some_and(|segment| !segment.retransmission))
            .pattern("x..."),
    );
    let traffic = stage.traffic();
    let server = traffic.listen()?;
    loop {
        let began = Instant::now();
        let mut pair = traffic.connect_to(&server)?;
        truth.transfers.push(began.elapsed());
        truth.connections += 1;
        pair.send(End::Client, stage.setup().size)?;
        truth.moved(End::Client, stage.setup().size);
        pair.close(End::Client)?;
        if !stage.going() {
            return Ok(());
        }
    }
}

/// A transfer after which nothing comes through any more, until the sender's kernel gives up.
pub(super) fn peer_vanishes(stage: &Stage, truth: &mut Truth) -> Result<()> {
    let traffic = stage.traffic();
    loop {
        let mut pair = traffic.connect()?;
        truth.connections += 1;
        pair.send(End::Client, stage.setup().size)?;
        truth.moved(End::Client, stage.setup().size);
        let holes = [stage.path.forward().blackhole(), stage.path.backward().blackhole()];
        let began = Instant::now();
        (&pair.client).write_all(&vec![b'v'; stage.setup().size as usize]).context("cannot write")?;
        let what = "the sender to give up: is tcp_retries2 small?";
        clock::wait_for(Duration::from_secs(1000), what, || {
            if stage.stopped() {
                return Ok(Some(()));
            }
            match pair.client.take_error()? {
                None => Ok(None),
                Some(error) if error.kind() == io::ErrorKind::TimedOut => Ok(Some(())),
                Some(error) => Err(error).context("the connection ended, but not by a timeout"),
            }
        })?;
        truth.transfers.push(began.elapsed());
        // The server knows nothing of it and says so when it closes; its RST is the client's answer to that.
        drop(pair);
        holes.iter().for_each(crate::relay::RuleHandle::remove);
        if !stage.going() {
            return Ok(());
        }
    }
}

/// Small requests that pass, then an upload of full segments that do not; given up after the pause.
pub(super) fn mtu_black_hole(stage: &Stage, truth: &mut Truth) -> Result<()> {
    let traffic = stage.traffic();
    loop {
        let mut pair = traffic.connect()?;
        truth.connections += 1;
        pair.ping_pong(5, 200)?;
        truth.moved(End::Client, 1000);
        truth.moved(End::Server, 1000);
        let began = Instant::now();
        pair.client.set_nonblocking(true).context("cannot make a socket non-blocking")?;
        let upload = vec![b'm'; stage.setup().size as usize];
        let written = (&pair.client).write(&upload).context("cannot write")?;
        stage.pause(stage.setup().pause);
        truth.paused += stage.setup().pause;
        truth.transfers.push(began.elapsed());
        let unacknowledged = crate::sockopt::unacknowledged(&pair.client)?;
        if !stage.stopped() && unacknowledged == 0 {
            bail!("all of {written} bytes came through: does vanish_above exceed the MTU?");
        }
        pair.abort(End::Client)?;
        if !stage.going() {
            return Ok(());
        }
    }
}

/// Connections to a port where nothing listens.
pub(super) fn reset_storm(stage: &Stage, truth: &mut Truth) -> Result<()> {
    storm(stage, truth, Stage::going)
}

fn storm(stage: &Stage, truth: &mut Truth, more: impl Fn(&Stage) -> bool) -> Result<()> {
    const AT_ONCE: usize = 50;
    let traffic = stage.traffic();
    loop {
        traffic.refused(AT_ONCE)?;
        truth.refused += AT_ONCE as u64;
        if !more(stage) {
            return Ok(());
        }
        stage.pause(Duration::from_millis(50));
    }
}

/// The ports of [`mixed`], by which `top` tells its flows apart.
const LOSSY: u16 = 8443;
const STALLING: u16 = 9000;
const SHORT: u16 = 8080;

/// One flow of several on a stage.
type Flow = fn(&Stage, &Traffic, &mut Truth) -> Result<()>;

/// Several flows at once, each with a trouble of its own.
pub(super) fn mixed(stage: &Stage, truth: &mut Truth) -> Result<()> {
    stage.path.forward().drop_when(Match::data().port(LOSSY).probability(0.03, stage.setup().seed));
    let traffic = stage.traffic();
    thread::scope(|scope| {
        let flows: [(&str, Flow, u16); 4] = [
            ("lossy uploads", lossy_uploads, LOSSY),
            ("a reader that stalls", stalls, STALLING),
            ("short connections", short, SHORT),
            ("a storm now and then", storms, 0),
        ];
        let running = flows.map(|(name, flow, port)| {
            let traffic = traffic.clone().port(port);
            let run = move || {
                let mut truth = Truth::default();
                flow(stage, &traffic, &mut truth).map(|()| truth)
            };
            (name, scope.spawn(run))
        });
        for (name, flow) in running {
            truth.add(flow.join().map_err(|_| anyhow!("{name}: it panicked"))?.with_context(|| name.to_owned())?);
        }
        Ok(())
    })
}

fn lossy_uploads(stage: &Stage, traffic: &Traffic, truth: &mut Truth) -> Result<()> {
    let mut pair = traffic.connect()?;
    truth.connections += 1;
    loop {
        stage.transfer(&mut pair, End::Client, stage.setup().size, truth)?;
        if !stage.going() {
            return pair.close(End::Client);
        }
    }
}

fn short(stage: &Stage, traffic: &Traffic, truth: &mut Truth) -> Result<()> {
    const SIZE: u64 = 5_000;
    let server = traffic.listen()?;
    loop {
        let mut pair = traffic.connect_to(&server)?;
        truth.connections += 1;
        stage.transfer(&mut pair, End::Client, SIZE, truth)?;
        pair.close(End::Client)?;
        if !stage.going() {
            return Ok(());
        }
        stage.pause(Duration::from_millis(100));
    }
}

/// Five seconds of a storm, fifteen of quiet.
fn storms(stage: &Stage, _: &Traffic, truth: &mut Truth) -> Result<()> {
    const STORM: Duration = Duration::from_secs(5);
    const QUIET: Duration = Duration::from_secs(15);
    loop {
        let end = Instant::now() + STORM;
        storm(stage, truth, |stage| stage.going() && Instant::now() < end)?;
        let quiet_until = Instant::now() + QUIET;
        while Instant::now() < quiet_until {
            if !stage.going() {
                return Ok(());
            }
            stage.pause(Duration::from_millis(100));
        }
    }
}
