//! A worker's stream with messages in it that can't be read.

use std::time::Duration;

use gatehouse_client::{Authorized, from_status};
use gatehouse_core::{Error, ErrorCode};
use gatehouse_job::MIGRATIONS;
use gatehouse_proto::codec::ProtoCodec;
use gatehouse_proto::job::v1::work_response::Message as Answer;
use gatehouse_proto::job::v1::*;
use gatehouse_testkit::{TestDb, both_engines};
use prost::Message as _;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Streaming};

use crate::common::{PATIENCE, Service};

const WORK: &str = "/gatehouse.job.v1.WorkerService/Work";

/// What stands where `WorkRequest.hello` stands, whatever it is.
fn in_place_of_hello(bytes: &[u8]) -> GetJobRequest {
    GetJobRequest { job_id: String::from_utf8(bytes.to_vec()).unwrap() }
}

fn hello() -> GetJobRequest {
    let hello = WorkHello { kinds: vec!["count".into()], ..WorkHello::default() };
    in_place_of_hello(&hello.encode_to_vec())
}

fn unreadable() -> GetJobRequest {
    in_place_of_hello(b"\x08")
}

/// The answers to a stream that has not ended.
async fn work(
    channel: Authorized,
    messages: Vec<GetJobRequest>,
) -> Result<(UnboundedSender<GetJobRequest>, Streaming<WorkResponse>), Error> {
    let (outgoing, requests) = unbounded_channel();
    for message in messages {
        outgoing.send(message).unwrap();
    }
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = ProtoCodec::<GetJobRequest, WorkResponse>::default();
    let request = Request::new(UnboundedReceiverStream::new(requests));
    let answers = client.streaming(request, PathAndQuery::from_static(WORK), codec).await;
    Ok((outgoing, answers.map_err(from_status)?.into_inner()))
}

both_engines! {
    migrations: MIGRATIONS;

    async fn what_can_not_be_read_ends_the_stream_with_a_reason(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let channel = || service.worker_channel(&["count:*"]);
        let refused = work(channel(), vec![unreadable()]).await.expect_err("there is no hello");
        assert_eq!((refused.code(), refused.reason()), (ErrorCode::InvalidArgument, "MESSAGE_INVALID"));
        let long = in_place_of_hello(&vec![b'x'; 4 << 20]);
        let refused = work(channel(), vec![long]).await.expect_err("it is too long to be read");
        assert_eq!((refused.code(), refused.reason()), (ErrorCode::ResourceExhausted, "MESSAGE_TOO_LARGE"));
        // Alone, and behind one that is good and is read together with it.
        for more in [vec![unreadable()], vec![hello(), unreadable(), hello()]] {
            let (outgoing, mut answers) = work(channel(), vec![hello()]).await.unwrap();
            let welcome = answers.message().await.unwrap().unwrap();
            assert!(matches!(welcome.message, Some(Answer::Welcome(_))), "{welcome:?}");
            for message in more {
                outgoing.send(message).unwrap();
            }
            let ended = tokio::time::timeout(PATIENCE, answers.message()).await.expect("it ends");
            let refused = from_status(ended.expect_err("with a reason"));
            assert_eq!((refused.code(), refused.reason()), (ErrorCode::InvalidArgument, "MESSAGE_INVALID"));
        }
        // A worker that speaks the protocol finds everything as it should be.
        let owner = service.owner();
        let job = owner.submit_count(3).await;
        let worker = service.counter(Duration::ZERO);
        owner.until(&job, JobState::Succeeded).await;
        worker.drain().await;
        service.stop().await;
    }
}
