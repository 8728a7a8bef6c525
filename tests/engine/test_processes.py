"""Who started a process, from what launchers put into its environment."""

import os

import pytest

from sercli.engine import processes
from sercli.engine.processes import first_of_nodes, started
from sercli.errors import UserError
from tests.engine.slurm_environments import STARTS

MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
STEP = {
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "gpu[03-05,9]-ib,login",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "TORCHELASTIC_", "MASTER_")) or name in (
            "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
        ):  # fmt: skip
            monkeypatch.delenv(name)


@pytest.fixture
def found(monkeypatch):
    def find(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return started()

    return find


RECORDED = [
    pytest.param(start, rank, id=f"{start.name}, {rank}")
    for start in STARTS
    for rank in range(len(start.environments))
]


@pytest.mark.parametrize(("start", "rank"), RECORDED)
def test_each_process_that_slurm_started_knows_which_it_is(found, start, rank):
    one = found(start.environments[rank])
    if start.processes == 1:
        assert one is None
        assert processes.launched_by() is None
        assert processes.ranks_here() == 1
        assert processes.is_first_process()
    else:
        assert (one.rank, one.world_size) == (rank, start.processes)
        assert processes.is_first_process() == (rank == 0)
        assert one.host in ("127.0.0.1", "localhost")


def test_one_process_is_alone(found):
    assert found({}) is None


@pytest.mark.parametrize("more", [{}, STEP])
def test_variables_of_one_process_win_over_a_step(found, more):
    assert found({**more, "RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize("more", [{}, STEP, {"OMPI_COMM_WORLD_SIZE": "2"}])
def test_variables_of_several_processes_win(found, more):
    given = {**more, **MEETING, "RANK": "1", "WORLD_SIZE": "2"}
    one = found({**given, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    assert (one.by, one.rank, one.world_size, one.local_rank) == ("torchrun", 1, 2, 1)
    assert (one.ranks_here, one.host, one.port, one.derived) == (2, "node1", 29500, None)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "10.0.0.1",
        "::1",
        "2001:db8::7",
        "fe80::1%eth0.4",
        "job-master-0.ns.svc.",
        "n_1",
    ],
)
def test_a_host_has_a_name_or_an_address(found, host):
    assert found({**MEETING, "MASTER_ADDR": host, "RANK": "0", "WORLD_SIZE": "2"}).host == host


def test_tasks_find_each_other_without_being_told(found):
    one = found(STEP)
    assert (one.by, one.rank, one.world_size, one.local_rank) == ("slurm", 3, 4, 1)
    assert (one.ranks_here, one.host) == (2, "gpu03-ib")
    assert one.port == 15000 + (1234 * 31 + 2) % 15000  # that of the step, below the ephemeral ones
    assert "SLURM_STEP_NODELIST" in one.derived


def test_tasks_that_are_told_where_to_meet_meet_there(found):
    one = found({**STEP, **MEETING})
    assert (one.host, one.port, one.derived) == ("node1", 29500, None)


def test_one_of_both_is_enough(found):
    assert found({**STEP, "MASTER_PORT": "4000"}).port == 4000
    assert found({"MASTER_ADDR": "node7"}).host == "node7"


def test_a_script_may_export_the_number_of_its_tasks(found):
    assert found({**STEP, "WORLD_SIZE": "4"}).by == "slurm"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"), ("node1,node2", "node1"), ("n[1-4]", "n1"), ("n[007,9-12],m", "n007"),
        ("r[1-2]n[03-04]", "r1n03"), ("", None), ("gpu-[08-09].example.org", "gpu-08.example.org"),
    ],
)  # fmt: skip
def test_the_first_of_a_list_of_nodes(nodes, first):
    assert first_of_nodes(nodes) == first


TWO = {**MEETING, "RANK": "0", "WORLD_SIZE": "2"}
WRONG = {
    "empty number": ({**TWO, "WORLD_SIZE": ""}, "WORLD_SIZE=(empty)"),
    "empty rank": ({**TWO, "RANK": ""}, "RANK=(empty)"),
    "both empty": ({"RANK": "", "WORLD_SIZE": ""}, "(empty)"),
    "negative rank": ({**TWO, "RANK": "-1"}, "RANK=-1"),
    "no processes": ({**TWO, "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    "text": ({**TWO, "WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
    "other digits": ({**TWO, "WORLD_SIZE": "²"}, "WORLD_SIZE=²"),
    "local": ({**TWO, "LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
    "local number": ({**TWO, "LOCAL_WORLD_SIZE": "4(x2)"}, "LOCAL_WORLD_SIZE=4(x2)"),
    "too high": ({**TWO, "RANK": "2"}, "RANK=2 with WORLD_SIZE=2"),
    "port": ({**TWO, "MASTER_PORT": "http"}, "MASTER_PORT=http"),
    "large port": ({**TWO, "MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
    "more than anybody starts": ({**TWO, "WORLD_SIZE": "9999999"}, "at most 65536"),
    "more tasks": ({**STEP, "SLURM_STEP_NUM_TASKS": "99999"}, "at most 65536"),
    "empty label": ({**TWO, "MASTER_ADDR": "a..b"}, "MASTER_ADDR=a..b"),
    "long label": ({**TWO, "MASTER_ADDR": "a" * 64}, "a host's name or address alone"),
    "long name": ({**TWO, "MASTER_ADDR": "a." * 127 + "a"}, "a host's name or address alone"),
    "brackets": ({**TWO, "MASTER_ADDR": "[::1]"}, "without brackets and port"),
    "address and port": ({**TWO, "MASTER_ADDR": "10.0.0.1:29500"}, "the port is MASTER_PORT"),
    "a URL": ({**TWO, "MASTER_ADDR": "tcp://node1"}, "MASTER_ADDR=tcp://node1"),
    "a blank, for tasks": ({**STEP, **MEETING, "MASTER_ADDR": "node 1"}, "MASTER_ADDR=node 1"),
    "a blank, without port": ({**STEP, "MASTER_ADDR": "node 1"}, "MASTER_ADDR=node 1"),
    "nowhere": ({"RANK": "0", "WORLD_SIZE": "2"}, "without MASTER_ADDR"),
    "no port": ({**TWO, "MASTER_PORT": ""}, "without MASTER_PORT"),
    "rank alone": ({"RANK": "0"}, "RANK=0 without WORLD_SIZE"),
    "number alone": ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK"),
    "another number": ({**STEP, "WORLD_SIZE": "8"}, "WORLD_SIZE=8 without RANK"),
    "Open MPI": ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun of Open MPI started 2 processes"),
    "its daemons": ({**STEP, "OMPI_COMM_WORLD_SIZE": "8"}, "OMPI_COMM_WORLD_SIZE=8"),
    "MVAPICH": ({"MVP_COMM_WORLD_SIZE": "2"}, "mpirun of MVAPICH started 2 processes"),
    "MPICH": ({"PMI_SIZE": "2"}, "PMI_SIZE=2"),
    "MPICH by srun": ({**STEP, "PMI_SIZE": "8"}, "PMI_SIZE=8"),
    "no such task": ({**STEP, "SLURM_PROCID": "4"}, "SLURM_PROCID=4"),
    "tasks": ({**STEP, "SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS=x"),
    "per node": ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x"}, "TASKS_PER_NODE=2(x"),
    "unknown nodes": ({**STEP, "SLURM_STEP_NODELIST": ""}, "export MASTER_ADDR"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_in_a_line(found, case):
    variables, words = WRONG[case]
    with pytest.raises(UserError) as refused:
        found(variables)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_srun_serves_mpi_programs_with_variables_of_theirs(found):
    assert found({**STEP, "PMI_SIZE": "4", "PMI_RANK": "3"}).by == "slurm"
