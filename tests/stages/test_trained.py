import shlex

from vidflow.stages.trained import predict_command


def test_the_command_that_predicts_names_the_run_and_its_store_but_no_password():
    command = predict_command("f" * 32, tracking_uri="https://ann:secret@host:5000")
    words = shlex.split(command)
    assert words[:4] == ["vidflow", "predict", "f" * 32, "VIDEO"]
    assert words[4:6] == ["--tracking-uri", "https://host:5000"]
    assert predict_command("my runs/trials/k") == "vidflow predict 'my runs/trials/k' VIDEO --out predicted.mp4"


def test_a_trial_that_follows_something_is_told_what_to_follow():
    assert "--box X0,Y0,X1,Y1" in predict_command("run", task="box_tracking")
    assert "--point X,Y" in predict_command("run", task="point_tracking")
