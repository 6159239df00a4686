"""Does a model learn a task from its context alone?"""
