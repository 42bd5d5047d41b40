//! Every message survives the way through its frame, and no bytes make a decoder panic.

use bytes::{Bytes, BytesMut};
use dunlin_protocol::codec::DecodeError;
use dunlin_protocol::frame::{Frame, FrameError, read_frame};
use dunlin_protocol::message::{ClientReply, ClientRequest, Hello, Opcode, PeerReply, PeerRequest, Welcome};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::generate;

/// The opcodes that this version knows.
fn opcodes() -> Vec<Opcode> {
    (0..=u8::MAX).filter_map(Opcode::from_number).collect()
}

fn framed(write: impl FnOnce(&mut BytesMut, u64) -> Result<(), FrameError>) -> Frame {
    let mut out = BytesMut::new();
    write(&mut out, 77).expect("small");
    let frame = read_frame(&mut out).expect("as written").expect("whole");
    assert!(out.is_empty() && frame.request_id == 77);
    frame
}

/// Hands the frame to every decoder; at most one takes it, and only if its body decodes to the last byte.
fn decode(frame: &Frame) -> usize {
    let taken = [
        accepted(PeerRequest::read(frame)),
        accepted(PeerReply::read(frame)),
        accepted(ClientRequest::read(frame)),
        accepted(ClientReply::read(frame)),
        accepted(Hello::read(frame)),
        accepted(Welcome::read(frame)),
    ];
    taken.into_iter().filter(|t| *t).count()
}

fn accepted<T>(read: Result<T, DecodeError>) -> bool {
    match read {
        Ok(_) => true,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// One damaged place of a body.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
}

impl Damage {
    fn apply(self, body: &mut Vec<u8>) {
        match self {
            Self::Insert(at, bytes) => {
                let at = at.index(body.len() + 1);
                body.splice(at..at, bytes);
            }
            _ if body.is_empty() => {}
            Self::Flip(at, bit) => {
                let at = at.index(body.len());
                body[at] ^= 1 << bit;
            }
            Self::Set(at, byte) => {
                let at = at.index(body.len());
                body[at] = byte;
            }
            Self::Cut(at) => body.truncate(at.index(body.len())),
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    // MessagePack's markers for long strings, arrays and maps announce lengths that are not there.
    let marker = prop_oneof![any::<u8>(), 0xc4u8..=0xdf];
    prop_oneof![
        (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (any::<Index>(), marker).prop_map(|(at, byte)| Damage::Set(at, byte)),
        any::<Index>().prop_map(Damage::Cut),
        (any::<Index>(), vec(any::<u8>(), 1..6)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
    ]
}

/// Boxed, because the strategies of six messages side by side are too large for a test's stack.
fn any_frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        3 => generate::peer_request().prop_map(|m| framed(|out, id| m.write(out, id))).boxed(),
        3 => generate::peer_reply().prop_map(|m| framed(|out, id| m.write(out, id))).boxed(),
        3 => generate::client_request().prop_map(|m| framed(|out, id| m.write(out, id))).boxed(),
        3 => generate::client_reply().prop_map(|m| framed(|out, id| m.write(out, id))).boxed(),
        1 => generate::hello().prop_map(|m| framed(|out, id| m.write(out, id))).boxed(),
        1 => generate::welcome().prop_map(|m| framed(|out, id| m.write(out, id))).boxed(),
    ]
}

macro_rules! round_trips {
    ($($test:ident $message:ident $strategy:ident)*) => {
        proptest! {
            $(#[test]
            fn $test(message in generate::$strategy()) {
                let frame = framed(|out, id| message.write(out, id));
                prop_assert_eq!($message::read(&frame).expect("as written"), message);
                prop_assert_eq!(decode(&frame), 1);
            })*
        }
    };
}

round_trips! {
    peer_requests_round_trip PeerRequest peer_request
    peer_replies_round_trip PeerReply peer_reply
    client_requests_round_trip ClientRequest client_request
    client_replies_round_trip ClientReply client_reply
    hellos_round_trip Hello hello
    welcomes_round_trip Welcome welcome
}

proptest! {
    #[test]
    fn random_bodies_never_panic(body in vec(any::<u8>(), 0..120)) {
        let body = Bytes::from(body);
        for opcode in opcodes() {
            let taken = decode(&Frame { opcode, request_id: 0, body: body.clone() });
            prop_assert!(taken <= 1);
        }
    }

    #[test]
    fn damaged_messages_never_panic(frame in any_frame(), damages in vec(damage(), 1..4), other in any::<Index>()) {
        let mut body = frame.body.to_vec();
        for damage in damages {
            damage.apply(&mut body);
        }
        let body = Bytes::from(body);
        let opcodes = opcodes();
        for opcode in [frame.opcode, opcodes[other.index(opcodes.len())]] {
            let taken = decode(&Frame { opcode, body: body.clone(), ..frame });
            prop_assert!(taken <= 1);
        }
    }

    #[test]
    fn bytes_behind_a_message_are_refused(frame in any_frame(), behind in vec(any::<u8>(), 1..8)) {
        let body = [&frame.body[..], &behind].concat();
        prop_assert_eq!(decode(&Frame { body: body.into(), ..frame }), 0);
    }

    #[test]
    fn a_cut_message_is_refused(frame in any_frame(), at in any::<Index>()) {
        prop_assume!(!frame.body.is_empty());
        let body = frame.body.slice(..at.index(frame.body.len()));
        prop_assert_eq!(decode(&Frame { body, ..frame }), 0);
    }
}

/// Deep nesting must end in an error before it ends the stack, and announced lengths must not be believed.
#[test]
fn hostile_bodies_are_refused() {
    let nested = vec![0x91; 1 << 20];
    let mut long_array = vec![0xdd, 0xff, 0xff, 0xff, 0xff];
    long_array.extend([0xc0; 16]);
    let long_bytes = vec![0x9f, 0xc6, 0xff, 0xff, 0xff, 0xff, 0x00];
    for body in [nested, long_array, long_bytes] {
        let body = Bytes::from(body);
        for opcode in opcodes() {
            assert_eq!(decode(&Frame { opcode, request_id: 0, body: body.clone() }), 0, "{opcode:?}");
        }
    }
}
