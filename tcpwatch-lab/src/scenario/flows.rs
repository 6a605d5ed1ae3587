//! Traffic that is honest work: what makes it slow is the path, or how it is written.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Stage, Truth};
use crate::traffic::{End, Pair};

/// Longer than any answer takes on these paths, lost segments included.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection after the other for a few uploads each, as fast as the path lets it.
pub(super) fn uploads(stage: &Stage, truth: &mut Truth) -> Result<()> {
    const PER_CONNECTION: usize = 5;
    let (traffic, mut listener) = (stage.traffic(), None);
    loop {
        let server = match &listener {
            Some(server) => server,
            None => listener.insert(traffic.listen()?),
        };
        let mut pair = traffic.connect_to(server)?;
        truth.connections += 1;
        for _ in 0..PER_CONNECTION {
            stage.transfer(&mut pair, End::Client, stage.setup().size, truth)?;
            if !stage.going() {
                return pair.close(End::Client);
            }
        }
        pair.close(End::Client)?;
    }
}

/// A connection for each upload.
pub(super) fn upload_per_connection(stage: &Stage, truth: &mut Truth) -> Result<()> {
    let traffic = stage.traffic();
    let server = traffic.listen()?;
    loop {
        let began = Instant::now();
        let mut pair = traffic.connect_to(&server)?;
        truth.connections += 1;
        let moved = pair.send_while(End::Client, stage.setup().size, || !stage.stopped())?;
        truth.moved(End::Client, moved);
        truth.transfers.push(began.elapsed());
        pair.close(End::Client)?;
        if !stage.going() {
            return Ok(());
        }
    }
}

/// Uploads on one connection with a pause after each; at least two of them.
pub(super) fn idle_between_uploads(stage: &Stage, truth: &mut Truth) -> Result<()> {
    let mut pair = stage.traffic().connect()?;
    truth.connections += 1;
    let size = stage.setup().size;
    stage.transfer(&mut pair, End::Client, size, truth)?;
    loop {
        stage.pause(stage.setup().pause);
        truth.paused += stage.setup().pause;
        stage.transfer(&mut pair, End::Client, size, truth)?;
        if !stage.going() {
            return pair.close(End::Client);
        }
    }
}

/// Single bytes, each in a segment of its own: never more at once than the first congestion window, as what waits is merged.
pub(super) fn tiny_writes(stage: &Stage, truth: &mut Truth) -> Result<()> {
    const AT_ONCE: u64 = 10;
    let pair = stage.traffic().connect()?;
    truth.connections += 1;
    pair.client.set_nodelay(true).context("cannot set TCP_NODELAY")?;
    pair.server.set_read_timeout(Some(PATIENCE)).context("cannot set the time to wait for a read")?;
    loop {
        let began = Instant::now();
        let mut left = stage.setup().size;
        while left > 0 && !stage.stopped() {
            let burst = left.min(AT_ONCE);
            for _ in 0..burst {
                (&pair.client).write_all(b"t").context("cannot write a byte")?;
            }
            (&pair.server).read_exact(&mut vec![0; burst as usize]).context("cannot read a few bytes")?;
            pair.wait_acknowledged(End::Client)?;
            truth.moved(End::Client, burst);
            left -= burst;
        }
        truth.transfers.push(began.elapsed());
        if !stage.going() {
            return pair.close(End::Client);
        }
    }
}

/// A request in two writes, an answer in one. The second write waits for the acknowledgement of the first, which the server
/// delays as it has nothing to say yet.
pub(super) fn write_write_read(stage: &Stage, truth: &mut Truth) -> Result<()> {
    let pair = stage.traffic().connect()?;
    truth.connections += 1;
    for stream in [&pair.client, &pair.server] {
        stream.set_read_timeout(Some(PATIENCE)).context("cannot set the time to wait for a read")?;
    }
    // The server acknowledges at once until it has seen enough; the first exchanges show nothing yet.
    let mut rounds = 0;
    while rounds < 30 || stage.going() {
        let began = Instant::now();
        exchange(&pair, stage.setup().size, truth)?;
        truth.transfers.push(began.elapsed());
        rounds += 1;
        if stage.stopped() {
            break;
        }
    }
    pair.close(End::Client)
}

fn exchange(pair: &Pair, size: u64, truth: &mut Truth) -> Result<()> {
    let part = vec![b'n'; size as usize];
    let mut whole = vec![0; 2 * size as usize];
    (&pair.client).write_all(&part).context("cannot write the head of a request")?;
    (&pair.client).write_all(&part).context("cannot write the body of a request")?;
    (&pair.server).read_exact(&mut whole).context("cannot read a request")?;
    (&pair.server).write_all(&part).context("cannot write an answer")?;
    (&pair.client).read_exact(&mut whole[..part.len()]).context("cannot read an answer")?;
    truth.moved(End::Client, 2 * size);
    truth.moved(End::Server, size);
    Ok(())
}

/// A request, the end of the client's side, and a large answer.
pub(super) fn half_close(stage: &Stage, truth: &mut Truth) -> Result<()> {
    const REQUEST: u64 = 300;
    let traffic = stage.traffic();
    let server = traffic.listen()?;
    loop {
        let mut pair = traffic.connect_to(&server)?;
        truth.connections += 1;
        pair.send(End::Client, REQUEST)?;
        truth.moved(End::Client, REQUEST);
        pair.half_close(End::Client)?;
        stage.transfer(&mut pair, End::Server, stage.setup().size, truth)?;
        pair.finish_close(End::Server)?;
        if !stage.going() {
            return Ok(());
        }
    }
}
