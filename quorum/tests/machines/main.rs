//! The machines against real registers: tables of single operations, and a randomised model of many.

mod cluster;
mod model;
mod proposer;
mod read;
mod scan;
mod write;
