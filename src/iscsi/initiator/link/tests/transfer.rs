//! Commands, data and answers as they were agreed, and what is not.

use super::*;

#[tokio::test]
async fn answers_find_their_commands_in_whatever_order_they_come() {
    let Running { mut target, jobs, .. } = start();
    let (first, second) = (jobs.read(5, 1), jobs.read(9, 1));
    let (one, _) = target.command().await;
    let (two, _) = target.command().await;
    assert_eq!((one.flags, one.expected), (FINAL | command::READ | command::SIMPLE, 512));
    target.data_in(two.task, good(), &[two.cdb[9]; 512]).await;
    target.data_in(one.task, good(), &[one.cdb[9]; 512]).await;
    assert_eq!(first.await.unwrap().unwrap().data, vec![5; 512]);
    assert_eq!(second.await.unwrap().unwrap().data, vec![9; 512]);
}

#[tokio::test]
async fn data_that_comes_in_several_pdus_is_put_together() {
    let digests = Parameters { header_digest: true, data_digest: true, ..Parameters::default() };
    for parameters in [Parameters::default(), digests] {
        let Running { mut target, jobs, .. } = start_with(parameters, WINDOW);
        let read = jobs.read(0, 2);
        let task = target.command().await.0.task;
        target.data_in(task, DataIn::default(), &[1; 300]).await;
        target.data_in(task, DataIn { data_sn: 1, offset: 300, flags: FINAL, ..DataIn::default() }, &[2; 724]).await;
        target.respond(task, Status::Good).await;
        assert_eq!(read.await.unwrap().unwrap().data, [vec![1; 300], vec![2; 724]].concat());
    }
}

#[tokio::test]
async fn no_command_is_sent_outside_of_the_window() {
    let Running { mut target, jobs, .. } = start_with(Parameters::default(), 2);
    let reads: Vec<_> = (0..5).map(|lba| jobs.read(lba, 1)).collect();
    let (first, second) = (target.command().await.0.task, target.command().await.0.task);
    // Whatever else there is to be sent must have been by the time a question is answered.
    let question = NopIn { flags: FINAL, task: NO_TAG, transfer: 3, command_sn_max: 2, ..NopIn::default() };
    target.send(NopIn { expected_command_sn: 3, status_sn: 100, ..question }.encode(0), &[]).await;
    let frame = target.receive().await;
    let answer = NopOut::decode(&frame.bhs);
    assert_eq!(pdu::opcode(&frame.bhs), NopOut::OPCODE);
    assert_eq!((answer.task, answer.transfer, pdu::is_immediate(&frame.bhs)), (NO_TAG, 3, true));
    target.data_in(first, good(), &[0; 512]).await;
    target.data_in(second, good(), &[0; 512]).await;
    for _ in 2..5 {
        let task = target.command().await.0.task;
        target.data_in(task, good(), &[0; 512]).await;
    }
    for read in reads {
        read.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn responses_are_acknowledged() {
    let Running { mut target, jobs, .. } = start();
    for expected in [100, 101, 102] {
        let ready = jobs.ready();
        let head = target.command().await.0;
        assert_eq!(head.expected_status_sn, expected);
        target.respond(head.task, Status::Good).await;
        ready.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_is_written_goes_as_it_was_agreed() {
    for (immediate_data, initial_r2t) in [(true, true), (true, false), (false, true), (false, false)] {
        let parameters = Parameters {
            immediate_data,
            initial_r2t,
            sent_max: 4 * KIB as u32,
            first_burst_max: 12 * KIB as u32,
            burst_max: 16 * KIB as u32,
            ..Parameters::default()
        };
        let Running { mut target, jobs, .. } = start_with(parameters, WINDOW);
        let data: Vec<u8> = (0..40 * KIB).map(|at| (at % 253) as u8).collect();
        let write = jobs.write(0, data.clone());
        let (head, immediate) = target.command().await;
        assert_eq!(immediate.len(), if immediate_data { 4096 } else { 0 });
        assert_eq!(head.flags & FINAL != 0, initial_r2t, "more follows unasked or not");
        let mut received = immediate.to_vec();
        let mut sequence = 0;
        while !initial_r2t && received.len() < 12 * KIB as usize {
            let (head, data) = target.data_out().await;
            assert_eq!((head.transfer, head.data_sn, head.offset as usize), (NO_TAG, sequence, received.len()));
            sequence += 1;
            received.extend_from_slice(&data);
            assert_eq!(head.flags & FINAL != 0, received.len() == 12 * KIB as usize);
        }
        let mut r2t_sn = 0;
        while received.len() < data.len() {
            let length = (data.len() - received.len()).min(16 * KIB as usize);
            let end = received.len() + length;
            target.ask(head.task, r2t_sn, received.len() as u32, length as u32).await;
            let mut sequence = 0;
            while received.len() < end {
                let (head, data) = target.data_out().await;
                let expected = (77 + r2t_sn, sequence, received.len());
                assert_eq!((head.transfer, head.data_sn, head.offset as usize), expected);
                assert!(data.len() <= 4096);
                sequence += 1;
                received.extend_from_slice(&data);
                assert_eq!(head.flags & FINAL != 0, received.len() == end);
            }
            r2t_sn += 1;
        }
        assert!(received == data);
        target.respond(head.task, Status::Good).await;
        write.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_read_that_is_short_or_a_write_that_was_not_taken_whole_is_no_success() {
    let Running { mut target, jobs, .. } = start();
    let read = jobs.read(0, 2);
    let task = target.command().await.0.task;
    let short = DataIn { flags: FINAL | data_in::STATUS | residual::UNDERFLOW, residual: 512, ..DataIn::default() };
    target.data_in(task, short, &[1; 512]).await;
    assert_eq!(read.await.unwrap().unwrap_err(), Failure::Status);
    // The same without saying so.
    let read = jobs.read(0, 2);
    let task = target.command().await.0.task;
    target.data_in(task, good(), &[1; 512]).await;
    assert_eq!(read.await.unwrap().unwrap_err(), Failure::Status);
    let write = jobs.write(0, vec![1; 1024]);
    let task = target.command().await.0.task;
    let head = ScsiResponse { flags: residual::UNDERFLOW, task, residual: 512, ..ScsiResponse::default() };
    target.respond_with(head, &[]).await;
    assert_eq!(write.await.unwrap().unwrap_err(), Failure::Status);
}

#[tokio::test]
async fn data_that_does_not_fit_its_command_ends_the_link() {
    let bad = |data_sn, offset| DataIn { data_sn, offset, ..DataIn::default() };
    for (head, length, reason) in [
        (bad(1, 0), 512, "data out of order"),
        (bad(0, 512), 512, "data at another offset than is next"),
        (bad(0, 0), 513, "data beyond its command"),
        (DataIn { flags: data_in::STATUS, ..DataIn::default() }, 512, "a status before the last data"),
    ] {
        let Running { mut target, jobs, link, .. } = start();
        let read = jobs.read(0, 1);
        let task = target.command().await.0.task;
        target.data_in(task, head, &vec![1; length]).await;
        broken(link, reason).await;
        lost(read).await;
    }
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![0; 512]);
    let task = target.command().await.0.task;
    target.data_in(task, good(), &[1; 512]).await;
    broken(link, "data of a command that reads none").await;
    lost(write).await;
}

#[tokio::test]
async fn what_may_not_be_asked_for_ends_the_link() {
    for (r2t_sn, offset, length, reason) in [
        (1, 8192, 4096, "it asks for data out of order"),
        (0, 0, 4096, "it asks for data at another offset than is next"),
        (0, 8192, 65536 - 8192 + 1, "it asks for data beyond its command"),
        (0, 8192, 0, "it asks for data beyond its command"),
    ] {
        let Running { mut target, jobs, link, .. } = start();
        let write = jobs.write(0, vec![0; 65536]);
        let task = target.command().await.0.task;
        target.ask(task, r2t_sn, offset, length).await;
        broken(link, reason).await;
        lost(write).await;
    }
    let Running { mut target, link, .. } = start();
    target.ask(5, 0, 0, 512).await;
    broken(link, "it asks for data of no command").await;
}

#[tokio::test]
async fn responses_that_cannot_be_end_the_link() {
    let Running { mut target, jobs, link, .. } = start();
    let read = jobs.read(0, 1);
    let task = target.command().await.0.task;
    target.status_sn += 1;
    target.respond(task, Status::Good).await;
    broken(link, "a status out of order").await;
    lost(read).await;

    let Running { mut target, link, jobs: _jobs, .. } = start();
    target.respond(3, Status::Good).await;
    broken(link, "a response to no command").await;

    for flags in [residual::OVERFLOW | residual::UNDERFLOW, residual::UNDERFLOW | residual::OVERFLOW | FINAL] {
        let Running { mut target, jobs, link, .. } = start();
        let write = jobs.write(0, vec![1; 512]);
        let task = target.command().await.0.task;
        target.respond_with(ScsiResponse { flags, task, ..ScsiResponse::default() }, &[]).await;
        broken(link, "a residual that is of too much and of too little").await;
        lost(write).await;
    }

    let Running { mut target, link, jobs: _jobs, .. } = start();
    target.command_sn = 5;
    let question = NopIn { flags: FINAL, task: NO_TAG, transfer: NO_TAG, expected_command_sn: 5, ..NopIn::default() };
    target.send(question.encode(0), &[]).await;
    broken(link, "a command expected behind one that was not sent").await;

    let Running { mut target, link, jobs: _jobs, .. } = start();
    target.send(pdu::TextResponse::default().encode(0), &[]).await;
    broken(link, "a PDU that nothing of ours is answered with").await;
}

#[tokio::test]
async fn a_write_that_is_done_before_its_data_was_asked_for_is_not_done() {
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![7; 65536]);
    let task = target.command().await.0.task;
    target.ask(task, 0, 8192, 4096).await;
    target.data_out().await;
    target.respond(task, Status::Good).await;
    broken(link, "a command done without its data").await;
    lost(write).await;
}

#[tokio::test]
async fn a_target_that_takes_nothing_cannot_ask_for_more_and_more() {
    let parameters =
        Parameters { outstanding_r2t_max: 8, burst_max: 1 << 20, sent_max: 1 << 18, ..Parameters::default() };
    let (connection, mut target) = connected(parameters, WINDOW);
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut link = Link::new(connection, 7 << 48, receiver, Watch::default());
    let (jobs, data) = (Jobs(sender), vec![7; 4 << 20]);
    let writes: Vec<_> = (0..8).map(|lba| jobs.write(lba, data.clone())).collect();
    tokio::task::yield_now().await;
    let asking = async {
        for task in 1..=8 {
            for r2t_sn in 0..3 {
                target.ask(task, r2t_sn, (r2t_sn << 20) + (1 << 16), 1 << 20).await;
            }
        }
        // It is heard as far as it goes.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        ended = poll_fn(|cx| link.poll(cx)) => panic!("{ended:?}"),
        () = asking => {}
    }
    let queued = link.outbox.len();
    assert!((OUTBOX_MAX / 2..OUTBOX_MAX + (2 << 20)).contains(&queued), "{queued}");
    // And it goes on when it takes something.
    let taking = async {
        let mut taken = 0;
        while taken < 20 << 20 {
            let mut buffer = vec![0; 1 << 20];
            taken += tokio::io::AsyncReadExt::read(&mut target.stream, &mut buffer).await.unwrap();
        }
    };
    tokio::select! {
        ended = poll_fn(|cx| link.poll(cx)) => panic!("{ended:?}"),
        () = taking => {}
    }
    drop((link, writes));
}
