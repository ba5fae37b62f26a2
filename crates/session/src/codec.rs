//! gRPC streams whose messages stay encoded.
//!
//! Files travel as many small or large messages; their content is laid out once where it is read and
//! looked at once where it arrives, so tonic is given bytes and gives bytes.

use bytes::{Buf, BufMut, Bytes};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http::uri::PathAndQuery;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::connection::Connection;
use crate::error::SessionError;

/// Encoded messages as they come from a peer.
pub type Inbound = BoxStream<'static, Result<Bytes, Status>>;

/// Encoded messages that are sent together.
pub type Batch = Vec<Bytes>;

/// The largest message taken from a peer, as stock peers have it.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Leaves messages encoded.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(item.len());
        out.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(16 << 10, 32 << 10)
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Opens a stream of encoded messages both ways. Nothing is awaited here: a peer may answer nothing,
/// not even headers, before it has got everything. The call is under way when this returns, polled or
/// not, and given up when what is returned is dropped.
pub fn open_stream(
    connection: Connection,
    path: &'static str,
    metadata: MetadataMap,
    outbound: impl Stream<Item = Batch> + Send + 'static,
) -> Inbound {
    let call = async move {
        let mut grpc = tonic::client::Grpc::with_origin(connection, Connection::origin())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(flat(outbound));
        *request.metadata_mut() = metadata;
        let response = grpc
            .streaming(request, PathAndQuery::from_static(path), RawCodec)
            .await?;
        Ok::<_, Status>(response.into_inner())
    };
    let call = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(call));
    let answer = async move {
        call.await
            .unwrap_or_else(|_| Err(Status::cancelled("call was given up")))
    };
    futures::TryFutureExt::try_flatten_stream(answer).boxed()
}

/// Batches as single messages.
pub fn flat(
    batches: impl Stream<Item = Batch> + Send + 'static,
) -> impl Stream<Item = Bytes> + Send {
    batches.flat_map(futures::stream::iter)
}

/// A message whose only field, number 1, are bytes: what gRPC services of BuildKit that carry a byte
/// stream exchange.
pub fn encode_bytes_message(data: &[u8]) -> Bytes {
    let mut out = bytes::BytesMut::with_capacity(data.len() + 12);
    encode_key(1, WireType::LengthDelimited, &mut out);
    encode_varint(data.len() as u64, &mut out);
    out.put_slice(data);
    out.freeze()
}

/// The bytes in such a message, not copied.
pub fn decode_bytes_message(mut message: Bytes) -> Result<Bytes, SessionError> {
    let broken = || SessionError::Protocol("malformed message of a byte stream".into());
    let mut data = Bytes::new();
    while message.has_remaining() {
        let (tag, wire) = decode_key(&mut message).map_err(|_| broken())?;
        if wire != WireType::LengthDelimited {
            return Err(broken());
        }
        let len = decode_varint(&mut message).map_err(|_| broken())?;
        if len > message.len() as u64 {
            return Err(broken());
        }
        let field = message.split_to(len as usize);
        if tag == 1 {
            data = field;
        }
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn byte_messages_are_those_of_the_generated_code() {
        let ours = encode_bytes_message(b"abc");
        let theirs = proto::upload::BytesMessage::decode(ours.clone()).unwrap();
        assert_eq!(theirs.data, b"abc");
        assert_eq!(
            decode_bytes_message(ours).unwrap(),
            Bytes::from_static(b"abc")
        );
        assert_eq!(decode_bytes_message(Bytes::new()).unwrap(), Bytes::new());
        assert!(decode_bytes_message(Bytes::from_static(&[0x0a, 9, 1])).is_err());
    }
}
