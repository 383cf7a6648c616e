//! A group laid out: the place of each frame, the bytes of each header, and what will be true once
//! they are written.
//!
//! Frames are ordered by partition, and by arrival within a partition, so that a reader of one
//! partition finds them side by side. Nothing is copied: a group is written as a list of slices,
//! header, payload and padding of each frame.

use crate::{
    disk::{DiskFile, write_all},
    format::{FrameHeader, HEADER_BYTES, UNIT_BYTES, frame_bytes},
    intake::{Group, Pending},
    scan::Chain,
};
use std::io::{self, IoSlice};
use trueup_operators::{
    log::{LogError, OFFSET_MAX},
    time::LogTime,
};

const ZEROS: [u8; UNIT_BYTES as usize] = [0; UNIT_BYTES as usize];

/// A frame of a group with its place.
pub(super) struct Placed {
    pub(super) request: usize,
    pub(super) frame: usize,
    pub(super) slot: usize,
    pub(super) offset: u64,
    pub(super) at: u64,
}

/// What to write, and what will be true when it is written.
pub(super) struct Layout {
    pub(super) placed: Vec<Placed>,
    headers: Vec<[u8; HEADER_BYTES]>,
    pub(super) chain: Chain,
    pub(super) end: u64,
}

impl Layout {
    /// Lays a group out behind a position. `durable_to` is what is known to be durable already.
    pub(super) fn of(
        group: &Group,
        chain: &Chain,
        at: u64,
        durable_to: u64,
    ) -> Result<Layout, LogError> {
        let mut order: Vec<(usize, usize, usize)> = Vec::new();
        for (request, waiting) in group.requests.iter().enumerate() {
            let frames = waiting.frames.iter().enumerate();
            order.extend(frames.map(|(frame, pending)| (pending.slot, request, frame)));
        }
        order.sort_unstable();
        let mut layout = Layout {
            placed: Vec::with_capacity(order.len()),
            headers: Vec::with_capacity(order.len()),
            chain: chain.clone(),
            end: at,
        };
        for (slot, request, frame) in order {
            let pending = &group.requests[request].frames[frame];
            let offset = layout.place(pending, group.log_time, durable_to)?;
            let at = layout.end;
            layout.placed.push(Placed { request, frame, slot, offset, at });
            layout.end += frame_bytes(pending.append.payload.len() as u32);
        }
        Ok(layout)
    }

    /// Adds a frame's header and moves the chain; the frame's offset.
    fn place(
        &mut self,
        pending: &Pending,
        log_time: LogTime,
        durable_to: u64,
    ) -> Result<u64, LogError> {
        let append = &pending.append;
        let header = FrameHeader {
            of: Some((append.topic, append.partition)),
            sequence: self.chain.sequence,
            offset: self.chain.reach[pending.slot].offset,
            log_time,
            payload_bytes: append.payload.len() as u32,
            records: append.records,
            schema_version: append.schema_version,
            durable_to,
            journal: self.chain.journal,
            payload_crc: pending.payload_crc,
        };
        if header.offset > OFFSET_MAX {
            let (topic, partition) = (append.topic.name(), append.partition);
            return Err(super::unavailable(format!(
                "{topic} partition {partition} is out of offsets, the last is {OFFSET_MAX}"
            )));
        }
        self.headers.push(header.encode());
        self.chain.sequence += 1;
        self.chain.extend(pending.slot, append.records);
        self.chain.floor = log_time;
        Ok(header.offset)
    }

    /// Writes the group where it was laid out.
    pub(super) fn write(&self, group: &Group, file: &dyn DiskFile) -> io::Result<()> {
        let Some(first) = self.placed.first() else { return Ok(()) };
        let mut slices = Vec::with_capacity(3 * self.placed.len());
        for (placed, header) in self.placed.iter().zip(&self.headers) {
            let payload = &group.requests[placed.request].frames[placed.frame].append.payload;
            slices.push(IoSlice::new(header));
            slices.push(IoSlice::new(payload));
            let padding = frame_bytes(payload.len() as u32) - UNIT_BYTES - payload.len() as u64;
            slices.push(IoSlice::new(&ZEROS[..padding as usize]));
        }
        write_all(file, &mut slices, first.at)
    }
}
