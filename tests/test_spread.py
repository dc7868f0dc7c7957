from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vidflow.spread import spread


@given(count=st.integers(0, 2000), most=st.integers(1, 600))
def test_places_are_even_each_once_and_hold_the_first_and_the_last(count, most):
    places = spread(count, most).tolist()
    assert len(places) == min(count, most)
    assert places[:1] == [0][:count]
    assert most == 1 or places[-1:] == [count - 1][:count]
    steps = {after - before for before, after in pairwise(places)}
    assert not steps or (min(steps) >= 1 and max(steps) - min(steps) <= 1)
