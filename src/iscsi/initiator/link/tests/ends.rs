//! How a link ends, and what does not end it.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_large_command_over_a_slow_network_has_its_time() {
    let Running { mut target, jobs, .. } = start();
    let write = jobs.write(0, vec![7; 8192 + 20 * 512]);
    let task = target.command().await.0.task;
    let begun = Instant::now();
    for r2t_sn in 0..20 {
        tokio::time::sleep(SILENCE_MAX - Duration::from_secs(1)).await;
        target.ask(task, r2t_sn, 8192 + r2t_sn * 512, 512).await;
        target.data_out().await;
    }
    assert!(begun.elapsed() > COMMAND_MAX);
    target.respond(task, Status::Good).await;
    write.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_change_whose_outcome_is_unknown_is_lost_and_never_sent_again() {
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.respond(task, Status::TaskAborted).await;
    lost(write).await;
    // The unit itself has ended it, and has answered: nothing is still to come.
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.check(task, 0xB, 0x0000).await;
    assert_eq!(write.await.unwrap().unwrap_err().to_disk(), DiskError::Io(disk::Errno::EIO));
    // Target failure.
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.respond_with(ScsiResponse { response: 1, task, ..ScsiResponse::default() }, &[]).await;
    lost(write).await;
    // A read can be done twice.
    let read = jobs.read(0, 1);
    let task = target.command().await.0.task;
    target.check(task, 0xB, 0x0000).await;
    let task = target.command().await.0.task;
    target.data_in(task, good(), &[1; 512]).await;
    read.await.unwrap().unwrap();
    let write = jobs.write(0, vec![7; 512]);
    target.command().await;
    drop(target);
    lost(write).await;
    assert!(matches!(link.await.unwrap().why, Err(LinkError::Closed | LinkError::Io(_))));
}

#[tokio::test]
async fn a_reject_ends_the_link_and_is_named() {
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    let frame = target.receive().await;
    let head = Reject { flags: FINAL, reason: 4, task: NO_TAG, status_sn: target.next_status(), ..Reject::default() };
    target.send(head.encode(48), &frame.bhs).await;
    let ended = link.await.unwrap();
    assert!(matches!(ended.why, Err(LinkError::Rejected { reason: 4, opcode: 1 })), "{:?}", ended.why);
    lost(write).await;
}

#[tokio::test]
async fn a_target_that_wants_to_be_left_is_left_when_what_is_in_flight_has_ended() {
    let Running { mut target, jobs, link, .. } = start();
    let (write, read) = (jobs.write(0, vec![7; 512]), jobs.read(0, 1));
    let (first, second) = (target.command().await.0.task, target.command().await.0.task);
    target.message(event::LOGOUT_REQUESTED, 5).await;
    let later = jobs.read(9, 1);
    target.respond(first, Status::Good).await;
    target.data_in(second, good(), &[1; 512]).await;
    target.log_out().await;
    write.await.unwrap().unwrap();
    read.await.unwrap().unwrap();
    let Ended { why, unsent } = link.await.unwrap();
    assert!(why.is_ok());
    assert_eq!(unsent.len(), 1, "what was not sent is given back");
    target.receives_nothing_more().await;
    drop(unsent);
    lost(later).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_wants_to_be_left_has_to_answer_in_its_time() {
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    target.command().await;
    target.message(event::LOGOUT_REQUESTED, 5).await;
    let begun = Instant::now();
    assert!(matches!(link.await.unwrap().why, Err(LinkError::NotLeft)));
    assert!((5..7).contains(&begun.elapsed().as_secs()));
    lost(write).await;
}

#[tokio::test]
async fn a_target_that_drops_the_connection_has_dropped_it() {
    for event in [event::DROPS_CONNECTION, event::DROPS_SESSION] {
        let Running { mut target, jobs, link, .. } = start();
        let write = jobs.write(0, vec![7; 512]);
        target.command().await;
        target.message(event, 0).await;
        assert!(matches!(link.await.unwrap().why, Err(LinkError::Dropped)));
        lost(write).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_target_is_asked_and_then_given_up() {
    let Running { mut target, link, jobs: _jobs, .. } = start();
    let begun = Instant::now();
    for round in 1..=3 {
        let frame = target.receive().await;
        assert_eq!((pdu::opcode(&frame.bhs), begun.elapsed().as_secs()), (NopOut::OPCODE, 10 * round));
        if round < 3 {
            let task = NopOut::decode(&frame.bhs).task;
            let (status_sn, command_sn_max) = (target.next_status(), target.max());
            let answer = NopIn { flags: FINAL, task, transfer: NO_TAG, status_sn, command_sn_max, ..NopIn::default() };
            target.send(NopIn { expected_command_sn: 1, ..answer }.encode(0), &[]).await;
        }
    }
    assert!(matches!(link.await.unwrap().why, Err(LinkError::Silent)));
    assert_eq!(begun.elapsed().as_secs(), 40);
}

#[tokio::test(start_paused = true)]
async fn a_command_without_an_answer_costs_the_session() {
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    target.command().await;
    let begun = Instant::now();
    let mut link = link;
    let ended = loop {
        tokio::select! {
            ended = &mut link => break ended.unwrap(),
            frame = target.receive() => {
                let task = NopOut::decode(&frame.bhs).task;
                let (status_sn, command_sn_max) = (target.next_status(), target.max());
                let answer = NopIn { flags: FINAL, task, transfer: NO_TAG, status_sn, command_sn_max, ..NopIn::default() };
                target.send(NopIn { expected_command_sn: 2, ..answer }.encode(0), &[]).await;
            }
        }
    };
    assert!(matches!(ended.why, Err(LinkError::Unanswered)), "{:?}", ended.why);
    assert!((120..=130).contains(&begun.elapsed().as_secs()));
    lost(write).await;
}

#[tokio::test]
async fn a_link_that_nobody_needs_logs_out() {
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    drop(jobs);
    let task = target.command().await.0.task;
    target.respond(task, Status::Good).await;
    write.await.unwrap().unwrap();
    target.log_out().await;
    assert!(link.await.unwrap().why.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_takes_what_it_is_sent_slowly_is_not_given_up() {
    let parameters =
        Parameters { initial_r2t: false, first_burst_max: 1 << 20, burst_max: 1 << 20, ..Parameters::default() };
    let Running { mut target, jobs, link, .. } = start_with(parameters, WINDOW);
    let writes: Vec<_> = (0..8).map(|lba| jobs.write(lba, vec![7; 1 << 20])).collect();
    let begun = Instant::now();
    // Slower than it would be asked and given up, in small pieces.
    let mut received = 0;
    // Until the rest of it is in the socket.
    while received < 4 << 20 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut buffer = vec![0; 400_000];
        received += tokio::io::AsyncReadExt::read(&mut target.stream, &mut buffer).await.unwrap();
    }
    assert!(begun.elapsed() > 2 * SILENCE_MAX && !link.is_finished());
    drop(target);
    for write in writes {
        lost(write).await;
    }
}
