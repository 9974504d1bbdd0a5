//! What is kept from `h2` of what a trusted proxy sends: frames of bodies that are empty and not the last.
//!
//! They say nothing (RFC 9113, section 6.1), but `h2` ends a connection for the 101st, and a proxy may pass them on for
//! anybody. Invariant: whatever else comes is passed on byte for byte; so is what only `h2` can judge, such as padding,
//! which takes of windows.

use bytes::BytesMut;

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// Where in the bytes of a client one is.
pub(crate) struct Sieve {
    /// What is left of the frame, or the preface, that is passed on.
    passing: usize,
    /// What came of the next frame's head.
    head: [u8; HEAD_BYTES],
    came: usize,
    /// Whether the headers of a request go on, and nothing else may come.
    in_headers: bool,
}

impl Default for Sieve {
    fn default() -> Self {
        Self { passing: PREFACE_BYTES, head: [0; HEAD_BYTES], came: 0, in_headers: false }
    }
}

impl Sieve {
    /// Puts what is to be passed on of `bytes` to `out`. The head of a frame waits until it is whole.
    pub(crate) fn pass(&mut self, mut bytes: &[u8], out: &mut BytesMut) {
        while !bytes.is_empty() {
            let wanted = if self.passing > 0 { self.passing } else { HEAD_BYTES - self.came };
            let (now, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            if self.passing > 0 {
                out.extend_from_slice(now);
                self.passing -= now.len();
                continue;
            }
            self.head[self.came..self.came + now.len()].copy_from_slice(now);
            self.came += now.len();
            if self.came == HEAD_BYTES {
                self.came = 0;
                if !self.is_nothing() {
                    out.extend_from_slice(&self.head);
                }
            }
        }
    }

    /// Whether the frame whose head has come says nothing.
    fn is_nothing(&mut self) -> bool {
        let [a, b, c, kind, flags, stream @ ..] = self.head;
        self.passing = u32::from_be_bytes([0, a, b, c]) as usize;
        if kind == HEADERS || kind == CONTINUATION {
            self.in_headers = flags & END_HEADERS == 0;
        }
        let of_body = kind == DATA && u32::from_be_bytes(stream) != 0 && !self.in_headers;
        of_body && self.passing == 0 && flags & (END_STREAM | PADDED) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn only_what_says_nothing_is_left_out_wherever_the_reads_end() {
        let nothing = frame(DATA, 0, 1, b"");
        let parts = [
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), true),
            (frame(4, 0, 0, b""), true),
            (nothing.clone(), false),
            // A head of 0 bytes in a payload is none.
            (frame(DATA, 0, 1, &nothing), true),
            (nothing.clone(), false),
            (nothing.clone(), false),
            (frame(DATA, PADDED, 1, b"\0"), true),
            (frame(DATA, PADDED, 1, b""), true),
            (frame(DATA, END_STREAM, 1, b""), true),
            (frame(DATA, 0, 0, b""), true),
            (frame(HEADERS, END_STREAM, 3, b"abc"), true),
            (nothing.clone(), true),
            (frame(CONTINUATION, 0, 3, b"d"), true),
            (nothing.clone(), true),
            (frame(CONTINUATION, END_HEADERS, 3, b"e"), true),
            (nothing, false),
            (frame(8, 0, 1, b"\0\0\0\x01"), true),
        ];
        let sent: Vec<u8> = parts.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let wanted: Vec<u8> =
            parts.iter().filter(|(_, passes)| *passes).flat_map(|(bytes, _)| bytes.clone()).collect();
        for read in 1..=sent.len() {
            let (mut sieve, mut out) = (Sieve::default(), BytesMut::new());
            for bytes in sent.chunks(read) {
                sieve.pass(bytes, &mut out);
            }
            assert_eq!(out, wanted, "in reads of {read} bytes");
        }
    }
}
