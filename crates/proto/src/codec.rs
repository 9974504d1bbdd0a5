//! Messages on the wire: as [`tonic_prost::ProstCodec`] has them, but that one which can't be decoded is told apart from
//! every other failure.
//!
//! A server must tell a caller who sent rubbish from a fault of its own, and a client must not take a server's rubbish
//! for its own: so decoding fails with `INTERNAL`, as everywhere in gRPC, and with a mark that only this process sees.

use std::error::Error as _;
use std::marker::PhantomData;
use std::sync::Arc;

use prost::{DecodeError, Message};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

/// The codec of every generated client and server.
#[derive(Clone, Debug)]
pub struct ProtoCodec<Encode, Decode>(PhantomData<(Encode, Decode)>);

impl<Encode, Decode> Default for ProtoCodec<Encode, Decode> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Encode, Decode> Codec for ProtoCodec<Encode, Decode>
where
    Encode: Message + Send + 'static,
    Decode: Message + Default + Send + 'static,
{
    type Encode = Encode;
    type Decode = Decode;
    type Encoder = ProstEncoder<Encode>;
    type Decoder = ProtoDecoder<Decode>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProtoDecoder(PhantomData)
    }
}

/// See [`ProtoCodec`].
#[derive(Clone, Debug)]
pub struct ProtoDecoder<Decode>(PhantomData<Decode>);

impl<Decode: Message + Default> Decoder for ProtoDecoder<Decode> {
    type Item = Decode;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Decode>, Status> {
        Decode::decode(buffer).map(Some).map_err(|error| {
            let mut status = Status::internal("The message can't be decoded.");
            status.set_source(Arc::new(Undecodable(error)));
            status
        })
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// The mark: no status of a service or of another process has it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Undecodable(DecodeError);

/// What is wrong with the bytes, if `status` was made here because a message could not be decoded. The words are the
/// decoder's: they name messages and fields, never their contents.
#[must_use]
pub fn undecodable(status: &Status) -> Option<&DecodeError> {
    status.source()?.downcast_ref().map(|Undecodable(error)| error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_decoded_here_has_the_mark() {
        let error = u64::decode(&b"\x08"[..]).expect_err("half a number");
        let mut marked = Status::internal("x");
        marked.set_source(Arc::new(Undecodable(error.clone())));
        assert_eq!(undecodable(&marked), Some(&error));
        let mut other = Status::internal("x");
        other.set_source(Arc::new(error));
        assert_eq!(undecodable(&other), None);
        assert_eq!(undecodable(&Status::internal("x")), None);
    }
}
