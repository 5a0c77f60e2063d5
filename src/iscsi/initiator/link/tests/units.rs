//! What a unit says of itself, and what that means for commands.

use super::*;

#[tokio::test]
async fn a_unit_that_may_be_another_is_sent_nothing_more() {
    for (key, code) in [(6, 0x2800), (6, 0x2900), (6, 0x2907), (6, 0x3F03), (6, 0x3F05), (6, 0x3F0E), (5, 0x2500)] {
        let Running { mut target, jobs, watch, link } = start_with(Parameters::default(), 2);
        let write = jobs.write(0, vec![7; 512]);
        let (head, data) = target.command().await;
        let read = jobs.read(5, 1);
        target.command().await;
        let queued = jobs.read(9, 1);
        tokio::task::yield_now().await;
        target.check(head.task, key, code).await;
        let Ended { why, unsent } = link.await.unwrap();
        assert!(matches!(why, Err(LinkError::Changed(sense)) if sense.code == code), "{code:#06x}: {why:?}");
        assert_eq!(watch.incarnation.load(Ordering::SeqCst), 1);
        target.receives_nothing_more().await;
        lost(read).await;
        // What it came with was not done: it can be done to the right one.
        assert_eq!(unsent.len(), 2);
        assert!(unsent[0].cdb == head.cdb && matches!(&unsent[0].transfer, Transfer::Out(same) if *same == data));
        assert!(matches!(&unsent[1].transfer, Transfer::In(512)));
        drop(unsent);
        lost(write).await;
        lost(queued).await;
    }
}

#[tokio::test]
async fn what_a_unit_tells_a_new_initiator_is_no_event() {
    let disk = Watch::default();
    let Running { mut target, jobs, watch, .. } = start_watched(Parameters::default(), WINDOW, disk.of_a_session());
    let ready = jobs.ready();
    for code in [0x2900, 0x3F0E, 0x2A09] {
        let task = target.command().await.0.task;
        target.check(task, 6, code).await;
    }
    let task = target.command().await.0.task;
    target.respond(task, Status::Good).await;
    ready.await.unwrap().unwrap();
    assert_eq!(disk.incarnation.load(Ordering::SeqCst), 0);
    // But what could not be written is told, whoever was asked.
    let ready = jobs.ready();
    let task = target.command().await.0.task;
    target.check_in(0x71, task, 3, 0x0C00).await;
    let task = target.command().await.0.task;
    target.respond(task, Status::Good).await;
    ready.await.unwrap().unwrap();
    assert!(disk.deferred_error.load(Ordering::SeqCst));
    watch.heed();
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.check(task, 6, 0x2900).await;
    lost(write).await;
    assert_eq!(disk.incarnation.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_link_to_another_unit_sends_nothing_more_at_once() {
    let Running { mut target, jobs, watch, link } = start_with(Parameters::default(), 1);
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    let queued: Vec<_> = (1..4).map(|lba| jobs.write(lba, vec![7; 512])).collect();
    tokio::task::yield_now().await;
    watch.halt();
    drop(jobs);
    target.respond(task, Status::Good).await;
    let Ended { why, unsent } = link.await.unwrap();
    assert!(matches!(why, Err(LinkError::Halted)), "{why:?}");
    assert_eq!(unsent.len(), 3);
    target.receives_nothing_more().await;
    drop(unsent);
    for write in queued.into_iter().chain([write]) {
        lost(write).await;
    }
}

#[tokio::test]
async fn sense_data_that_cannot_be_read_may_have_told_of_a_reset() {
    let Running { mut target, jobs, watch, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.respond(task, Status::CheckCondition).await;
    assert_eq!(write.await.unwrap().unwrap_err(), Failure::Status);
    assert_eq!(watch.incarnation.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_unit_that_has_changed_is_looked_at_again() {
    let Running { mut target, jobs, watch, .. } = start();
    let read = jobs.read(0, 1);
    let task = target.command().await.0.task;
    target.check(task, 6, 0x2A09).await;
    watch.look_again.notified().await;
    let task = target.command().await.0.task;
    target.data_in(task, good(), &[1; 512]).await;
    read.await.unwrap().unwrap();
    assert_eq!(watch.incarnation.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_deferred_error_is_noted_and_its_command_is_sent_again() {
    let Running { mut target, jobs, watch, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.check_in(0x71, task, 3, 0x0C00).await;
    let task = target.command().await.0.task;
    assert!(watch.deferred_error.load(Ordering::SeqCst));
    assert_eq!(watch.incarnation.load(Ordering::SeqCst), 1);
    target.respond(task, Status::Good).await;
    write.await.unwrap().unwrap();
    // A retry that succeeded in the end is no error.
    let Running { mut target, jobs, watch, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.check_in(0x71, task, 1, 0x0C01).await;
    let task = target.command().await.0.task;
    target.respond(task, Status::Good).await;
    write.await.unwrap().unwrap();
    assert!(!watch.deferred_error.load(Ordering::SeqCst));
    assert_eq!(watch.incarnation.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn unit_attentions_without_end_are_an_error() {
    let Running { mut target, jobs, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    for _ in 0..=Patience::USUAL.attempts {
        let task = target.command().await.0.task;
        target.check(task, 6, 0x2A01).await;
    }
    assert_eq!(write.await.unwrap().unwrap_err().to_disk(), DiskError::Refused(disk::Errno::EIO));
}

#[tokio::test(start_paused = true)]
async fn a_busy_unit_is_asked_again_for_a_while() {
    let Running { mut target, jobs, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    for status in [Status::Busy, Status::TaskSetFull, Status::Busy] {
        let task = target.command().await.0.task;
        target.respond(task, status).await;
    }
    let task = target.command().await.0.task;
    target.respond(task, Status::Good).await;
    write.await.unwrap().unwrap();

    let write = jobs.write(0, vec![7; 512]);
    let begun = Instant::now();
    while !write.is_finished() {
        assert!(begun.elapsed() < Duration::from_secs(40));
        tokio::select! {
            (head, _) = target.command() => target.respond(head.task, Status::Busy).await,
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
    }
    assert_eq!(write.await.unwrap().unwrap_err(), Failure::Busy);
    assert!(begun.elapsed() >= Patience::USUAL.busy);
}

#[tokio::test(start_paused = true)]
async fn a_full_target_gets_fewer_commands() {
    let Running { mut target, jobs, .. } = start();
    let reads: Vec<_> = (0..16).map(|lba| jobs.read(lba, 1)).collect();
    let mut tasks = Vec::new();
    for _ in 0..16 {
        tasks.push(target.command().await.0.task);
    }
    for task in tasks {
        target.respond(task, Status::TaskSetFull).await;
    }
    // All come again, but one after the other, until it seems to have room again.
    for number in 0..16 {
        let task = target.command().await.0.task;
        if number < 8 {
            let quiet = tokio::time::timeout(Duration::from_secs(3), target.command()).await;
            assert!(quiet.is_err(), "two at once");
        }
        target.data_in(task, good(), &[0; 512]).await;
    }
    for read in reads {
        read.await.unwrap().unwrap();
    }
}
