"""The survey-wide experiment: which ways there are, how one is trained, and how all of them are shown."""
