//! The whole binary, driven by clients that we did not write. Each test is a promise to the user.

mod harness;
mod oracle;
mod s3;
mod trace;

mod comparing;
mod corpora;
mod crashes;
mod cuts;
mod filesystems;
mod gateways;
mod guest;
mod iscsi;
mod luns;
mod malformed;
mod outages;
mod power;
mod registry;
mod remotes;
mod restoring;
mod safety;
mod space;
mod strangers;
mod transparency;
mod untracked;
mod usage;
