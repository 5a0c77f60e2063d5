//! The whole binary, driven by clients that we did not write. Each test is a promise to the user.

mod harness;
mod oracle;
mod s3;
mod trace;

mod comparing;
mod crashes;
mod cuts;
mod malformed;
mod remotes;
mod restoring;
mod safety;
mod transparency;
mod usage;
