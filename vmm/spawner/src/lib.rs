//! Pid 1 of a VM's pid namespace: starts and kills workers.
